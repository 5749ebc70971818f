"""Texts of the installed packages."""

from keras_fusion.t5 import corpus
from keras_fusion.t5.documents import open_source


def test_packages_are_held_out_by_file_and_copies_are_left_out(tmp_path, monkeypatch):
    def write(name, *documents):
        path = tmp_path / name / "module.py"
        path.parent.mkdir(parents=True)
        bodies = (f'def f{i}():\n    """{d}"""\n' for i, d in enumerate(documents))
        path.write_text("\n".join(bodies))

    common = "What two libraries say with few changes. " * 4
    for number in range(60):
        own = f"Number {number} of the packages, in words enough to be kept."
        write(f"package{number:02}", own, common + f"Changed {number}.")
    monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: {"purelib": tmp_path})
    found = corpus.installed_packages(validation_fraction=0.3)
    every = [*found.training, *found.validation]
    assert len(every) == 61 and sum(common in text for text in every) == 1
    assert 5 < len(found.validation) < 35
    # A file more changes nothing for the others.
    write("another", "One package more, and nothing else is another one now.")
    more = corpus.installed_packages(validation_fraction=0.3)
    assert set(found.validation) - {t for t in every if common in t} <= set(
        more.validation
    )
    source = open_source("installed-packages")
    assert source.name == "installed-packages"
    assert len(list(source.training[0]())) + len(list(source.validation[0]())) == 62
