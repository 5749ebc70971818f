"""Python in processes of its own: scripts of `tests/runs`, and code in a string."""

import json
import os
import socket
import subprocess
import sys

from repository import ROOT

SCRIPTS = ROOT / "tests" / "runs"
SOURCES = (
    ROOT / "tests" / "support",
    ROOT,
    *filter(None, [os.getenv("PYTHONPATH")]),
)
# Loading a file in an environment without keras_fusion must fail, and say why.
REFUSES = """
import sys, keras, keras_hub
try:
    keras.saving.load_model(sys.argv[1])
except Exception as error:
    assert "import_keras_fusion" in str(error), error
else:
    raise AssertionError("it has loaded")
assert "keras_fusion" not in sys.modules
"""


def start(script, *arguments, **environment):
    """Starts a script; several can run at once."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, SOURCES))
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def result(process):
    """What a script has printed as JSON on its last line."""
    return json.loads(lines(process)[-1])


def lines(process, timeout=900):
    """What a script has printed."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()  # Nothing, if it has ended.
    assert process.returncode == 0, err[-3000:]
    return out.splitlines()


def run_code(code, *arguments, flags=(), cwd=None, **environment):
    """Runs code to its end, without the helpers of the tests; what it has printed."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def free_port():
    """A port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
