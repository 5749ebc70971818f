"""The package as a whole: what importing it costs, and what it says of itself."""

import importlib.metadata
import importlib.util
import inspect
import re

import pytest
from processes import run_code
from repository import PACKAGE, ROOT

import keras_fusion

FOLDERS = (PACKAGE, ROOT / "experiments", ROOT / "tests")
FILES = [path for folder in FOLDERS for path in folder.rglob("*.py")]
MAX_LINES = 400

# What `import keras_fusion` must neither load nor need.
OPTIONAL = (
    "IPython",
    "keras_hub",
    "matplotlib",
    "pydot",
    "sentencepiece",
    "tensorflow",
    "tensorflow_datasets",
    "tensorflow_text",
)


def _run(code, backend, tmp_path):
    """Runs code with the installed package."""
    return run_code(code, cwd=tmp_path, KERAS_BACKEND=backend)


@pytest.fixture(params=["jax", "torch"])
def other_backend(request):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def test_import_loads_nothing_optional(other_backend, tmp_path):
    # Keras itself loads some of them where it finds them: only the rest is ours.
    code = f"""
import sys
import keras
before = set(sys.modules)
import keras_fusion
print(sorted((set(sys.modules) - before) & set({OPTIONAL})))
"""
    assert _run(code, other_backend, tmp_path).strip() == "[]"


def test_import_needs_nothing_optional(other_backend, tmp_path):
    code = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None  # importing it raises ImportError
import keras_fusion
print(keras_fusion.__version__)
"""
    assert _run(code, other_backend, tmp_path).strip() == keras_fusion.__version__


@pytest.mark.core
def test_public_names_exist_and_are_documented():
    names = keras_fusion.__all__
    assert len(names) == len(set(names))
    missing = [name for name in names if not hasattr(keras_fusion, name)]
    assert not missing, f"keras_fusion.__all__ names what is not there: {missing}"
    public = {name: getattr(keras_fusion, name) for name in names}
    silent = [
        name
        for name, value in public.items()
        if (callable(value) or inspect.ismodule(value)) and not value.__doc__
    ]
    assert not silent, f"Public names without a docstring: {silent}"


def test_version_is_the_same_everywhere():
    version = keras_fusion.__version__
    installed = importlib.metadata.version("keras-fusion")
    assert installed == version, (
        f"keras_fusion.__version__ is {version}, the installed metadata say "
        f"{installed}. Change setup.cfg too, then run `make test`, which installs anew."
    )
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(version)}\]", changelog, re.MULTILINE), (
        f"CHANGELOG.md has no section '## [{version}]'."
    )


def test_files_are_short():
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in FILES}
    long = {str(p.relative_to(ROOT)): n for p, n in lines.items() if n > MAX_LINES}
    assert not long, f"Split what has more than {MAX_LINES} lines: {long}"
