"""What the command line does, once its words are read."""

import dataclasses
from pathlib import Path

import keras

from keras_fusion.t5 import (
    data,
    finetuning,
    forest,
    markdown,
    plots,
    results,
    strategy,
    tables,
)
from keras_fusion.t5 import recipe as recipes
from keras_fusion.t5.recipe import Recipe
from keras_fusion.t5.store import Store
from keras_fusion.t5.tasks import open_task
from keras_fusion.t5.tree import Node, parse, trainings


@dataclasses.dataclass(frozen=True)
class Options:
    """The words of the command line, see `python -m keras_fusion.t5 --help`."""

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

    def recipe(self) -> Recipe:
        """The recipe, with what the command line says of it."""
        found = recipes.load(self.scale)
        if self.source:
            text = dataclasses.replace(found.text, source=self.source)
            found = dataclasses.replace(found, text=text)
        return found

    def store(self) -> Store:
        """Where the trainings are."""
        return Store(self.output or Path(f"t5_{Path(self.scale).stem}"))

    def nodes(self, recipe: Recipe) -> list[tuple[int, Node]]:
        """The trainings that are meant, parents first."""
        if not self.trees:
            return recipe.nodes(self.seeds)
        roots = [parse(text) for text in self.trees]
        for root in roots:
            recipe.check(root)
        nodes = roots if self.only else trainings(roots)
        return [(seed, node) for seed in range(self.seeds or 1) for node in nodes]


def pretrain(options: Options) -> None:
    """Trains trees, from where they stand."""
    recipe, store = options.recipe(), options.store()
    nodes = options.nodes(recipe)
    if options.dry_run:
        _list(nodes, recipe, store)
        return
    make_deterministic()
    host, hosts = strategy.host()
    with strategy.scope(options.strategy):
        data.prepare(recipe, store.data, host=host, hosts=hosts)
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
        done = "finished" if store.entry(seed, node).finished else "to do"
        print(f"seed {seed}  {done:<9} {recipe.steps(node):>8} steps  {node.name}")


def finetune(options: Options) -> None:
    """Fine-tunes every finished root on every task, from where that stands."""
    recipe, store = options.recipe(), options.store()
    if options.trees:
        nodes = options.nodes(recipe)
        wanted = {parse(text).name for text in options.trees}
        nodes = [row for row in nodes if row[1].name in wanted]
    else:
        roots = {tree.name for t in recipe.tables for tree in t.trees.values()}
        nodes = [row for row in recipe.nodes(options.seeds) if row[1].name in roots]
    make_deterministic()
    vocabulary = data.load(recipe, store.data).vocabulary
    for name in options.tasks or recipe.finetuning.tasks:
        task = open_task(name)
        for seed, node in nodes:
            _finetune_node(seed, node, task, vocabulary, recipe, store)


def _finetune_node(seed, node, task, vocabulary, recipe, store):
    entry, settings = store.entry(seed, node), recipe.finetuning
    name = f"finetuned-{task.name}"
    with entry.claimed(name) as mine:
        if not mine or not entry.finished or entry.read(name) is not None:
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
        entry.write(name, found.to_dict())
    _show(f"seed {seed}  {node.name:<24} {task.name}: {dict(found.metrics)}")


def table(options: Options) -> None:
    """Gathers the results, and writes them as JSON and as tables in Markdown."""
    recipe = options.recipe()
    gathered = results.collect(recipe, options.store())
    results.save(gathered, _results_path(options, recipe))
    text = tables.markdown(gathered)
    if options.docs is not None:
        markdown.insert(text, options.docs)
    print(text)


def plot(options: Options) -> None:
    """Draws the gathered results."""
    recipe = options.recipe()
    gathered = results.load(_results_path(options, recipe))
    folder = options.docs.parent if options.docs else options.store().folder
    for path in plots.draw(gathered, folder):
        print(path)


def _results_path(options, recipe):
    return options.results or options.store().folder / f"t5_{recipe.scale}.json"


def make_deterministic() -> None:
    """Makes a run that went on after a stop end as one that never stopped."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        # Sums in another order would be other sums.
        tf.config.experimental.enable_op_determinism()


def _show(line):
    print(line, flush=True)
