"""Fingerprints of data and trainings, so that no others are mistaken for them.

A fingerprint is plain data: the values of the recipe that make a difference to the
result, size and digest of the text, a digest of the vocabulary, and digests of the
parents' fingerprints. Two are compared value by value, and a difference is named.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from keras_fusion.errors import FusionError
from keras_fusion.t5 import records
from keras_fusion.t5.documents import Source
from keras_fusion.t5.recipe import Recipe
from keras_fusion.t5.store import Entry, Store
from keras_fusion.t5.tree import Node
from keras_fusion.training import files

_SHOWN = 4  # differences in a message

_REMADE = "Remove the folder, and `pretrain` makes its data again."


def of_text(recipe: Recipe) -> dict:
    """The fingerprint of a recipe's data, without the text itself, which is not read.

    Args:
        recipe: `Recipe`.

    Returns:
        Dict.
    """
    text = recipe.text
    if text.vocabulary:
        path = Path(text.vocabulary)
        known = {"sha256": files.sha256(path)} if path.is_file() else {}
        vocabulary = {"trained": False} | known
    else:
        vocabulary = {
            "trained": True,
            "size": text.vocabulary_size,
            "coverage": text.vocabulary_coverage,
            "byte_fallback": text.uses_bytes,
        }
    return {
        "source": {"kind": source_kind(text.source)},
        "vocabulary": vocabulary | {"sentinels": text.sentinels},
        "validation_tokens": validation_tokens(recipe),
    }


def source_kind(source: str) -> str:
    """The kind of a source, wherever its files are."""
    if source in ("standard-library", "installed-packages"):
        return source
    return "c4" if source.split("/")[0] == "c4" else "text folder"


def validation_tokens(recipe: Recipe) -> int:
    """The most tokens of the validation text that a recipe uses."""
    rows = recipe.text.validation_batches * recipe.training.batch_size
    # Rows are longer than inputs, and the last one may not be whole.
    return 2 * (rows + 1) * recipe.text.input_length


def of_node(node: Node, recipe: Recipe) -> dict:
    """The recipe's part of a node's fingerprint.

    Args:
        node: `Node`.
        recipe: `Recipe`.

    Returns:
        Dict. It leaves out what changes neither the training nor its curve, such as how
        often the state is saved.
    """
    text, training = recipe.text, recipe.training
    found = {
        **recipe.shapes[node.shape],
        "steps": recipe.steps(node),
        "peak_rate": training.peak_rate,
        "rate": recipe.rate(node),
        "batch_size": training.batch_size,
        "warmup_steps": training.warmup_steps,
        "constant_steps": training.constant_steps,
        "evaluate_every": training.evaluate_every,
        "input_length": text.input_length,
        "noise_density": text.noise_density,
        "mean_span_length": text.mean_span_length,
        "validation_batches": text.validation_batches,
        "sentinels": text.sentinels,
    }
    if node.parents:
        found["off_diagonal"] = recipe.off_diagonal(node)
        found["norms"] = recipe.fusion.norms if node.copies == 1 else "joint"
        if found["off_diagonal"] != "zeros":
            found["noise_scale"] = recipe.noise_scale(node)
        found["optimizer_state"] = recipe.fusion.optimizer_state
    return found


def of_training(
    node: Node, seed: int, recipe: Recipe, store: Store, data: Mapping
) -> dict:
    """The fingerprint that a node's state and result carry.

    Args:
        node: `Node`.
        seed: int.
        recipe: `Recipe`.
        store: `Store`. Parents that have not finished in it are left out.
        data: dict. What `recorded` returns; without it, text and vocabulary are left out.

    Returns:
        Dict.
    """
    parents = {}
    for parent in node.parents:
        entry = store.entry(seed, parent)
        # A finished root can be brought without its parents, or with some of an earlier
        # version.
        if entry.finished and "fingerprint" in (result := entry.result()):
            parents[parent.name] = records.digest(result["fingerprint"])
    return {"recipe": of_node(node, recipe), "parents": parents, **data}


def recorded(folder: Path) -> dict:
    """The data's part of a node's fingerprint: text and vocabulary.

    Args:
        folder: `Path`, see `Store.data`.

    Returns:
        Dict of the source and the vocabulary; empty if the folder has no record, since
        it is empty or of an earlier version.

    Raises:
        FusionError: if the record is damaged.
    """
    made = of_data(folder)
    path = folder / "vocabulary.json"
    if made is None or not path.exists():
        return {}
    vocabulary = records.fingerprint(path, _REMADE)
    return {"source": made["source"], "vocabulary": vocabulary}


def of_data(folder: Path) -> dict | None:
    """The fingerprint of a folder's data; `None` if it has none.

    Raises:
        FusionError: if the record is damaged.
    """
    path = folder / "fingerprint.json"
    if not path.exists():
        return None
    return records.fingerprint(path, _REMADE)


def claim(recipe: Recipe, source: Source, folder: Path) -> None:
    """Compares a folder's data with what is wanted, and marks a folder without data.

    Args:
        recipe: `Recipe`.
        source: `Source`. Its whole text is read.
        folder: `Path`, see `Store.data`.

    Raises:
        FusionError: naming the difference; or if the text cannot be read, or the data are
            of an earlier version.
    """
    text = of_text(recipe)
    wanted = {
        **text,
        "source": text["source"] | source.identity(),
        "shards": [len(source.training), len(source.validation)],
    }
    what = f"The data in {str(folder)!r}"
    folder.mkdir(parents=True, exist_ok=True)
    with data_lock(folder):
        made = of_data(folder)
        if made is None and _has_data(folder):
            raise FusionError(
                f"{what} are of an earlier version, which did not record its text and "
                "recipe, so nothing can be compared. `finetune`, `table` and `plot` still "
                "work with that folder; to train, choose another --output."
            )
        if made is not None and _has_data(folder):
            way_out = "Choose another --output, or remove that folder to make it again."
            check(what, made, wanted, way_out)
        else:
            records.write(folder / "fingerprint.json", {"fingerprint": wanted})


@contextlib.contextmanager
def data_lock(folder: Path) -> Iterator[None]:
    """Holds a folder's data against other processes, and waits for them.

    Args:
        folder: `Path`, see `Store.data`.
    """
    lock = FileLock(folder / "data.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"waiting for the process that prepares {folder}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _has_data(folder):
    return any(folder.glob("*.npy")) or (folder / "vocabulary.model").exists()


def check_text(recipe: Recipe, folder: Path) -> None:
    """Compares a folder's data with a recipe, without reading the text.

    Args:
        recipe: `Recipe`.
        folder: `Path`, see `Store.data`.

    Raises:
        FusionError: naming the difference. Data of an earlier version have no record, and
            are not compared.
    """
    made = of_data(folder)
    if made is not None:
        way_out = "Use the recipe and the --source that it was made with."
        check(f"The data in {str(folder)!r}", made, of_text(recipe), way_out)


# What earlier versions did without saying so.
_EARLIER = {"optimizer_state": "reset"}


def check(what: str, found: Mapping, wanted: Mapping, way_out: str) -> None:
    """Compares a fingerprint with what is wanted now.

    Args:
        what: string. The thing that carries it, for the message.
        found: mapping. Values that `wanted` does not have are not compared.
        wanted: mapping.
        way_out: string. A sentence for the error.

    Raises:
        FusionError: naming the values that differ, before and now.
    """
    different = list(_differences(found, wanted))
    if different:
        more = len(different) - _SHOWN
        rest = f"; and {more} more" if more > 0 else ""
        raise FusionError(
            f"{what} was made from something else: {'; '.join(different[:_SHOWN])}{rest}. "
            f"{way_out}"
        )


def _differences(found: Mapping, wanted: Mapping, prefix: str = "") -> Iterator[str]:
    for key, now in wanted.items():
        before = found.get(key, _EARLIER.get(key))
        name = f"{prefix}{key}"
        if isinstance(now, Mapping) and isinstance(before, Mapping):
            yield from _differences(before, now, f"{name}.")
        elif before != now:
            yield f"{name} was {before!r} and is now {now!r}"


def check_result(node: Node, seed: int, recipe: Recipe, store: Store) -> bool:
    """Checks that a finished training is the one that the recipe means.

    Args:
        node: `Node`.
        seed: int.
        recipe: `Recipe`.
        store: `Store`.

    Returns:
        Whether it could be compared: not with a result of an earlier version, which has
        no fingerprint.

    Raises:
        FusionError: naming the difference.
    """
    entry = store.entry(seed, node)
    result = entry.result()
    what = f"The training {node.name!r} of seed {seed} in {str(entry.folder)!r}"
    way_out = "Choose another --output, or remove that folder to train the node again."
    own = {"node": node.name, "seed": seed}
    # A folder that was brought to the wrong place, whatever version wrote it.
    check(what, result, {k: v for k, v in own.items() if k in result}, way_out)
    if "fingerprint" not in result:
        return False
    data = recorded(store.data)
    wanted = of_training(node, seed, recipe, store, data)
    check(what, result["fingerprint"], wanted, way_out)
    return True


def check_state(entry: Entry, wanted: Mapping) -> None:
    """Checks that an unfinished training, if there is one, is the one that is wanted.

    Args:
        entry: `Entry`.
        wanted: mapping, see `of_training`.

    Raises:
        FusionError: naming the difference; or if the state cannot be read, or is of an
            earlier version.
    """
    figures = entry.state_figures()
    if figures is None:
        return
    if "fingerprint" not in figures:
        reason = "it is of an earlier version, which did not record its recipe and text"
        raise entry.unusable_state(reason)
    check(
        f"The unfinished training in {str(entry.folder)!r}",
        figures["fingerprint"],
        wanted,
        "Choose another --output, or remove that folder to train the node again.",
    )


def of_finetuning(name: str, recipe: Recipe) -> dict:
    """The recipe's part of the fingerprint of a fine-tuning.

    Args:
        name: string. The task's.
        recipe: `Recipe`.
    """
    settings = dataclasses.asdict(recipe.finetuning)
    return {"task": name} | {k: v for k, v in settings.items() if k != "tasks"}


def check_scores(task: str, recipe: Recipe, entry: Entry, **known: object) -> None:
    """Checks that a node was fine-tuned as the recipe says.

    Args:
        task: string. A task on which it has been.
        recipe: `Recipe`.
        entry: `Entry`.
        **known: what else is known of it now: the model, the text.

    Raises:
        FusionError: naming the difference. Results of an earlier version have no
            fingerprint, and are not compared.
    """
    found = entry.scores(task) or {}
    if "fingerprint" in found:
        check(
            f"The result {str(entry.folder / f'finetuned-{task}.json')!r}",
            found["fingerprint"],
            {"recipe": of_finetuning(task, recipe), **known},
            "Remove the file to fine-tune again, or choose another --output.",
        )
