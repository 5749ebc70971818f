"""Runs of the scripts in `tests/runs`, each in a process of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
SOURCES = (TESTS, TESTS.parent / "benchmarks", *filter(None, [os.getenv("PYTHONPATH")]))


def start(script, *arguments, **environment):
    """Starts a script; several can run at once."""
    command = [sys.executable, str(TESTS / "runs" / script), *map(str, arguments)]
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


def free_port():
    """A port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
