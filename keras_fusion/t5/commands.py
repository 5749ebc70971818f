"""The commands, once the command line has been parsed.

Arguments, recipes, trees and the files of the output folder are checked before anything
that takes seconds is imported.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keras_fusion.errors import FusionError
from keras_fusion.t5 import fingerprint, forest, markdown, records, requirements
from keras_fusion.t5 import recipe as recipes
from keras_fusion.t5.documents import open_source
from keras_fusion.t5.recipe import Recipe
from keras_fusion.t5.store import Store
from keras_fusion.t5.tree import Node, parse, trainings

if TYPE_CHECKING:
    from keras_fusion.t5.text_task import TextTask
    from keras_fusion.t5.vocabulary import Vocabulary

_MODULE = "keras_fusion.t5"
_BACKENDS = ("tensorflow", "jax")
_NAMED = 5  # trainings in a message


@dataclasses.dataclass(frozen=True)
class Options:
    """The arguments of the command line, see `python -m keras_fusion.t5 --help`."""

    scale: str
    output: Path | None = None
    seeds: int | None = None
    strategy: str = "none"
    source: str = ""
    trees: tuple[str, ...] = ()
    only: bool = False
    dry_run: bool = False
    tasks: tuple[str, ...] = ()
    results: Path | None = None
    docs: Path | None = None
    devices: int = 1
    peak_tflops: float = 197.0
    utilization: float = 0.4
    law: Path | None = None
    mixing: tuple[float, float] = (0.0, 0.0)

    def recipe(self) -> Recipe:
        """The recipe, with the changes that the command line makes."""
        found = recipes.load(self.scale)
        if self.source:
            text = dataclasses.replace(found.text, source=self.source)
            found = dataclasses.replace(found, text=text)
        return found

    def store(self) -> Store:
        """The trainings of the output folder."""
        return Store(self.output or Path(f"t5_{Path(self.scale).stem}"))

    def nodes(self, recipe: Recipe) -> list[tuple[int, Node]]:
        """The selected trainings, parents first."""
        if not self.trees:
            if self.only:
                raise FusionError(
                    "`--only` is for the trees of --tree, which is missing."
                )
            return recipe.nodes(self.seeds)
        roots = self.roots(recipe)
        nodes = list(roots.values()) if self.only else trainings(roots.values())
        seeds = 1 if self.seeds is None else self.seeds
        return [(seed, node) for seed in range(seeds) for node in nodes]

    def roots(self, recipe: Recipe) -> dict[str, Node]:
        """The trees of the command line, or else those of the recipe, by their names."""
        if not self.trees:
            trees = [tree for table in recipe.tables for tree in table.trees.values()]
        else:
            trees = [parse(text) for text in self.trees]
        for tree in trees:
            recipe.check(tree)
        return {tree.name: tree for tree in trees}


def plan(options: Options) -> None:
    """Foretells what the trees cost and save; trains nothing."""
    recipe = options.recipe()
    roots = options.roots(recipe)
    if options.docs is not None:
        markdown.check_page(options.docs, "plan")
    _check_backend()
    from keras_fusion.t5 import forecast

    machine = forecast.Machine(
        options.devices, options.peak_tflops, options.utilization
    )
    laws = forecast.LAWS if options.law is None else [forecast.read_law(options.law)]
    asked = forecast.Forecaster(recipe, machine, laws, options.mixing)
    tables = {"Trees": roots}
    if not options.trees:
        tables = {each.name: each.trees for each in recipe.tables}
    parts = []
    for name, trees in tables.items():
        found = {setting: asked.forecast(tree) for setting, tree in trees.items()}
        parts += [f"### {name}: forecast", forecast.markdown(found)]
    text = "\n\n".join(parts) + "\n"
    if options.docs is not None:
        markdown.insert(text, options.docs, "plan")
    print(text)


def pretrain(options: Options) -> None:
    """Trains trees, and resumes what has begun."""
    recipe, store = options.recipe(), options.store()
    nodes = options.nodes(recipe)
    if options.dry_run:
        _list(nodes, recipe, store)
        return
    forest.check(nodes, recipe, store)
    source = open_source(recipe.text.source)
    _check_backend()
    _check_alone()
    fingerprint.claim(recipe, source, store.data)
    from keras_fusion.t5 import data, strategy

    make_deterministic()
    with strategy.scope(options.strategy):
        host, hosts = strategy.host()
        data.prepare(
            recipe, store.data, source=source, host=host, hosts=hosts, show=_show
        )
        forest.grow(
            nodes,
            recipe,
            data.load(recipe, store.data),
            store,
            devices=strategy.devices(options.strategy),
            show=_show,
        )


def _list(nodes, recipe, store):
    for seed, node in nodes:
        done = "to do"
        if store.entry(seed, node).finished:
            fingerprint.check_result(node, seed, recipe, store)
            done = "finished"
        print(f"seed {seed}  {done:<9} {recipe.steps(node):>8} steps  {node.name}")


def finetune(options: Options) -> None:
    """Fine-tunes every finished root on every task, unless that has been done."""
    recipe, store = options.recipe(), options.store()
    from keras_fusion.t5.tasks import check_name, open_task

    tasks = options.tasks or recipe.finetuning.tasks
    for name in tasks:
        check_name(name)
    roots = options.roots(recipe)
    rows = [row for row in options.nodes(recipe) if row[1].name in roots]
    rows = _finished(rows, store)
    _compare(rows, recipe, store)
    _check_backend()
    from keras_fusion.t5 import data

    make_deterministic()
    vocabulary = data.load_vocabulary(recipe, store.data)
    for name in tasks:
        task = open_task(name)
        texts = (task.training, *task.validation.values())
        digest = records.digest([dataclasses.asdict(text) for text in texts])
        for seed, node in rows:
            _finetune_node(seed, node, task, digest, vocabulary, recipe, store)


def _finetune_node(
    seed: int,
    node: Node,
    task: "TextTask",
    digest: str,
    vocabulary: "Vocabulary",
    recipe: Recipe,
    store: Store,
) -> None:
    from keras_fusion.t5 import finetuning

    entry, settings = store.entry(seed, node), recipe.finetuning
    known = {"model": entry.result().get("model_sha256"), "text": digest}
    name = f"finetuned-{task.name}"
    with entry.claimed(name) as mine:
        if not mine:
            return
        if entry.scores(task.name) is not None:
            fingerprint.check_scores(task.name, recipe, entry, **known)
            return
        found = finetuning.finetune(
            entry.model(),
            task,
            vocabulary,
            steps=settings.steps,
            batch_size=settings.batch_size,
            input_length=settings.input_length,
            target_length=settings.target_length,
            learning_rate=settings.rate,
            seed=node.seed(seed),
        )
        made_from = {"recipe": fingerprint.of_finetuning(task.name, recipe), **known}
        entry.write(name, found.to_dict() | {"fingerprint": made_from})
    _show(f"seed {seed}  {node.name:<24} {task.name}: {dict(found.metrics)}")


def table(options: Options) -> None:
    """Collects the results, and writes them as JSON and as tables in Markdown."""
    recipe, store = options.recipe(), options.store()
    if options.docs is not None:
        markdown.check_page(options.docs)
    roots = options.roots(recipe)
    rows = [row for row in recipe.nodes() if row[1].name in roots]
    _compare(_finished(rows, store), recipe, store)
    from keras_fusion.t5 import results, tables

    gathered = results.collect(recipe, store)
    results.save(gathered, _results_path(options, recipe))
    text = tables.markdown(gathered)
    if options.docs is not None:
        markdown.insert(text, options.docs)
    print(text)


def plot(options: Options) -> None:
    """Draws the collected results."""
    from keras_fusion.t5 import plots, results

    recipe, path = options.recipe(), _results_path(options, options.recipe())
    gathered = results.load(path)
    folder = options.docs.parent if options.docs else options.store().folder
    drawn = plots.draw(gathered, folder)
    if not drawn:
        raise FusionError(
            f"The results in {str(path)!r} have no finished training to draw. Run "
            f"`pretrain --scale {recipe.scale}` and `table` first."
        )
    for picture in drawn:
        print(picture)


def _finished(rows: Sequence[tuple[int, Node]], store: Store) -> list[tuple[int, Node]]:
    """The trainings that have finished, of which there must be at least one."""
    found = [(seed, node) for seed, node in rows if store.entry(seed, node).finished]
    if not found:
        raise FusionError(
            f"In {str(store.folder)!r} none of the {len(rows)} trainings that are asked "
            "for has finished. Run `pretrain` first, with the same --scale and --output."
        )
    return found


def _compare(rows, recipe, store):
    """Compares trainings and data with the recipe, as far as their versions allow."""
    fingerprint.check_text(recipe, store.data)
    unknown = [
        f"{node.name} of seed {seed}"
        for seed, node in rows
        if not fingerprint.check_result(node, seed, recipe, store)
    ]
    if unknown:
        print(
            f"{_MODULE}: an earlier version made {len(unknown)} of these trainings, so "
            f"they are not compared with the recipe: {', '.join(unknown[:_NAMED])}"
            + (", ..." if len(unknown) > _NAMED else ""),
            file=sys.stderr,
        )


def _results_path(options, recipe):
    return options.results or options.store().folder / f"t5_{recipe.scale}.json"


def _check_backend():
    try:
        requirements.check_backend(_MODULE, _BACKENDS)
    except RuntimeError as error:
        raise FusionError(str(error)) from error


def _check_alone():
    from keras_fusion.models import processes

    if not processes.is_alone():
        raise FusionError(
            "pretrain runs in one process, on all devices of its machine, and this one "
            "has been joined with others (jax.distributed). Start the command on each "
            "machine by itself with the same --output: together they train different "
            "nodes of the trees."
        )


def make_deterministic() -> None:
    """Makes a resumed run end as one that was never stopped."""
    import keras

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        # Sums in another order would be other sums.
        tf.config.experimental.enable_op_determinism()


def _show(line):
    print(line, flush=True)
