"""The wheel and the source distribution: what is in them, and that they install."""

import subprocess
import sys
import tarfile
import zipfile

import pytest
from processes import run_code
from repository import PACKAGE, ROOT

import keras_fusion

LARGEST = 200_000  # bytes of a file in the source distribution

BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # setuptools changes them
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Paths of both, built from a copy of the tracked files."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("needs the git repository, to tell the sources")
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    folder = tmp_path_factory.mktemp("dist")
    run_code(BUILD, folder, cwd=source)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_source_distribution_is_small(built):
    with tarfile.open(built[0]) as archive:
        sizes = {member.name: member.size for member in archive.getmembers()}
    large = {name: size for name, size in sizes.items() if size > LARGEST}
    assert not large, f"Files over {LARGEST:,} bytes: {large}"
    names = {name.partition("/")[2] for name in sizes}
    assert {"setup.cfg", "README.md", "LICENSE", "tests/support/models.py"} <= names
    assert not [n for n in names if n.endswith((".png", ".ipynb", ".json"))]


@pytest.mark.slow
def test_wheel_holds_the_package_alone(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {
        "keras_fusion",
        f"keras_fusion-{keras_fusion.__version__}.dist-info",
    }
    modules = PACKAGE.rglob("*.py")
    missing = {str(m.relative_to(ROOT)) for m in modules} - set(names)
    assert not missing, f"Not in the wheel: {missing}"
    assert "keras_fusion/t5/recipes/tiny.toml" in names


@pytest.mark.slow
def test_wheel_installs_and_imports(built, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path), str(built[1])], check=True)
    code = "import keras_fusion; print(keras_fusion.__file__)"
    printed = run_code(code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert printed.strip() == str(tmp_path / "keras_fusion" / "__init__.py")


@pytest.mark.slow
def test_import_costs_little_more_than_keras(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from experiments import import_time

    found = import_time.ratio(rounds=5)
    assert found <= 1.15, f"import keras_fusion takes {found:.2f} of import keras"
