"""Deeper models: parents made as deep as the deepest, and stacks of layers repeated.

A pre-norm residual block is an identity when what it adds to the stream is zero. So a
shallower parent is built anew as deep as the deepest and takes its weights over, and in
its new blocks only those weights are zero through which a block writes to the stream.
The others keep their initial values, so that the new blocks learn from the first step.
Which weights those are is found by trying, on the model itself.

A class tells how many blocks it has by the config keys that its rule names. A plain
functional model has no such key: there, segments of its graph are repeated.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import keras
import numpy as np

from keras_fusion.architecture import build
from keras_fusion.architecture.grown_configs import own_functions
from keras_fusion.architecture.repeat import align, repeat
from keras_fusion.architecture.stacks import stacks
from keras_fusion.architecture.widths import Widths
from keras_fusion.errors import FusionError, StructureError
from keras_fusion.models import exchange, host, probe, rules, samples, tree
from keras_fusion.models import graph as graphs
from keras_fusion.models.graph import Graph
from keras_fusion.models.stock import is_block_norm, stock_class


class Row(NamedTuple):
    """A layer of a deeper model and the layer of the model that it was made from.

    Args:
        address: where the deeper model holds its layer.
        old: the layer that it continues or repeats; `None` for a new one that repeats
            nothing.
        new: the deeper model's layer.
        is_new: whether it is in a new block.
    """

    address: str
    old: keras.Layer | None
    new: keras.Layer
    is_new: bool


# Parents of unequal depth.


def equalized(parents: list[keras.Model]) -> list[keras.Model]:
    """The parents, each as deep as the deepest.

    Args:
        parents: K built models: plain functional ones, or models whose rules, or those of
            the models that they hold, name in `depth` the config keys that count blocks.

    Returns:
        The parents themselves where depths are equal; in the place of the shallower ones,
        new models of the same function.

    Raises:
        FusionError: if a shallower parent cannot continue as an identity.
    """
    if all(graphs.is_plain(parent) for parent in parents):
        read = [graphs.read(parent) for parent in parents]
        deepest = max(read, key=lambda graph: len(graph.calls))
        pairs = zip(parents, read, strict=True)
        return [_as_deep_as(deepest, parent, graph) for parent, graph in pairs]
    depths = [_counts(parent) for parent in parents]
    if any(d.keys() != depths[0].keys() for d in depths):
        return parents  # Of different architectures, which `build` reports.
    most = {key: max(d[key] for d in depths) for key in depths[0]}
    deepest = max(zip(parents, depths, strict=True), key=lambda x: sum(x[1].values()))
    sizes = most | _kinds(*deepest)
    return [
        parent if own == most else _with_more_blocks(parent, sizes)
        for parent, own in zip(parents, depths, strict=True)
    ]


def _as_deep_as(deepest: Graph, parent: keras.Model, graph: Graph) -> keras.Model:
    """A plain model as it is, or with segments repeated."""
    found = align(graph, deepest)
    if found is None or not any(is_new for *_, is_new in found):
        return parent  # If it is of another architecture, `build` reports it.
    # The deepest model's graph and names, of this model's layers.
    own = {entry["name"]: entry for entry in graph.serialized["layers"]}
    source = {name: like for name, like, _ in found}
    config = deepest.config()
    for entry in config["layers"]:
        if entry["name"] in source:
            like = own[source[entry["name"]]]
            entry["config"] = like["config"] | {"name": entry["name"]}
            entry["build_config"] = like.get("build_config")
    deep = _rewired(parent, config)
    return _continued(parent, deep, _layer_rows(parent, deep, found))


def _with_more_blocks(parent, counts):
    """A model of the same function with other numbers of blocks, see `_counts`."""
    places = dict(tree.by_attribute(parent))
    deep = _with_counts(parent, counts)
    rows = (
        Row(address, places.get(address), layer, address not in places)
        for address, layer in tree.by_attribute(deep)
    )
    return _continued(parent, deep, rows)


def _continued(model: keras.Model, deep: keras.Model, rows: Iterable[Row]):
    """A deeper model that computes what a model does: its new blocks are identities."""
    new = []
    for address, old, layer, is_new in rows:
        if is_new:
            new += tree.own_variables(layer)
        else:
            _copy(old, layer, address)
    kernels = [v for v in new if v.trainable and len(v.shape) > 1]
    for variable in quiet(model, deep, kernels):
        host.write(variable, np.zeros(variable.shape, variable.dtype))
    exchange.mark_owners(deep)
    return deep


def _copy(old, new, address):
    follow_norm(old, new)
    for source, target in tree.shared_variables([old, new]):
        if source.shape != target.shape:
            raise StructureError(
                f"{address!r} changes its shape from {tuple(source.shape)} to "
                f"{tuple(target.shape)} with the depth. Use parents of equal depth."
            )
        host.write(target, host.read(source))


def quiet(
    model: keras.Model, deep: keras.Model, variables: list[keras.Variable]
) -> list[keras.Variable]:
    """Finds which weights of new blocks must be zero for the blocks to be identities.

    Nothing is written.

    Args:
        model: the shallower model.
        deep: the deeper one, which holds the weights of both.
        variables: list of the variables of `deep` that may become zero.

    Returns:
        List of those that must: through them the blocks write to the stream.

    Raises:
        FusionError: if the blocks change the stream even when all of them are zero.
    """
    initial = [(v, host.read(v)) for v in variables]
    inputs = samples.accepted(model)
    expected = probe.outputs(model, inputs)

    def change():
        return probe.change(expected, probe.outputs(deep, inputs))

    with host.assumed([(v, np.zeros_like(value)) for v, value in initial]):
        if not change() <= 1e-6:
            raise FusionError(
                f"{model.name!r} cannot continue as an identity in more blocks: they "
                "change the stream even when they add nothing to it (norms after the "
                "residual sum). Use parents of equal depth, or DepthStacking with "
                "identity=False."
            )
        harmless = {id(v) for v, _ in probe.keep_harmless(change, initial)}
    return [v for v in variables if id(v) not in harmless]


def check_live(live: keras.Model, parents: Sequence[keras.Model]) -> None:
    """Checks that the model in training is as deep as its partners.

    Raises:
        FusionError: if it would have to be built anew.
    """
    if parents[0] is not live:
        raise FusionError(
            f"The live model {live.name!r} is shallower than a partner. Train the "
            "deepest one, and give the shallower ones as `partners`."
        )


# One model, several times as deep.


def deeper(
    model: keras.Model, factor: int, order: str = "stacked"
) -> tuple[keras.Model, list[Row]]:
    """A model with its layers repeated.

    Args:
        model: a built model, plain functional or of a class whose rule names in `depth`
            the config keys that count blocks.
        factor: int. How many times as deep it becomes.
        order: `"stacked"` for the whole stack on top of itself (1, 2, 1, 2),
            `"interleaved"` for each copy behind its origin (1, 1, 2, 2).

    Returns:
        The deeper model, built, with fresh weights; and for each of its layers the one
        that it repeats, as `Row`s `(address, old layer, new layer, is_new)`.

    Raises:
        FusionError: for a model in which no blocks can be found.
        StructureError: if a new block has no block of its kind to repeat.
    """
    find = _repeated if graphs.is_plain(model) else _recounted
    deep, rows = find(model, factor, order)
    for row in rows:
        follow_norm(row.old, row.new)
    exchange.mark_owners(deep)
    return deep, rows


def follow_norm(old: Any, new: keras.Layer) -> None:
    """Makes a norm block-wise if the one that it continues or repeats is."""
    if is_block_norm(old) and not is_block_norm(new):
        exchange.follow(new, old)


def _repeated(model, factor, order):
    """A deeper plain model."""
    graph = graphs.read(model)
    found = stacks(graph)
    if not found:
        raise FusionError(
            f"{model.name!r} has no blocks to repeat: none of its parts comes again, and "
            "none is residual. Build it of residual blocks, or grow it in width."
        )
    runs = []
    for stack in found:
        runs += [stack.run] if order == "stacked" else stack.layers
    longer, origin = repeat(graph, [(run, factor - 1) for run in runs])
    deep = _rewired(model, longer.config(origin))
    names: list[str] = [layer.name for layer in deep.layers]
    like = [(name, origin.get(name, name), name in origin) for name in names]
    return deep, [Row("", model, deep, False), *_layer_rows(model, deep, like)]


def _layer_rows(model, deep, names: Iterable[tuple[str, str, bool]]) -> Iterator[Row]:
    """Yields a row for each layer below those of given names, in the order given."""
    for name, like, is_new in names:
        pair = [model.get_layer(like), deep.get_layer(name)]
        for address, (old, new) in tree.lockstep(pair):
            yield Row(f"{name}.{address}".rstrip("."), old, new, is_new)


def _rewired(model: keras.Model, config: dict) -> keras.Model:
    """A plain model of another graph.

    Args:
        model: a plain functional or Sequential model, whose name, classes, and structure
            of inputs and outputs are taken.
        config: a functional model's config, with flat lists of inputs and outputs.
    """
    # Classes that nobody has registered with Keras are known from the model. Keras's own
    # are left out: a layer and an operation of it may have one name (`Add`).
    classes = {stock_class(layer) for _, layer in tree.walk(model)}
    classes = {c.__name__: c for c in classes if c.__module__.split(".")[0] != "keras"}
    classes |= _functions(model)
    if isinstance(model, keras.Sequential):
        made = _made_from(model, config, classes)
        return keras.Sequential(made.layers, name=model.name)
    for key, structure in (
        ("input_layers", model.input),
        ("output_layers", model.output),
    ):
        config[key] = keras.tree.pack_sequence_as(structure, config[key])
    config["name"] = model.name
    return _made_from(model, config, classes)


def _functions(model: keras.Model) -> dict[str, Any]:
    """The functions in a model's layers that are not Keras's, by their names."""
    found = {}
    for _, layer in tree.walk(model):
        config = layer.get_config()
        for key, function in own_functions(layer, config).items():
            name = keras.saving.get_registered_name(function)
            if isinstance(config[key], str):
                raise FusionError(
                    f"`{key}` of {layer.name!r} is a function with the name of Keras's "
                    f"own {name!r}, which its config would give. Rename it."
                )
            found[name] = function
    return found


def _made_from(model, config, classes):
    try:
        return graphs.functional_class().from_config(config, classes)
    except Exception as error:
        raise FusionError(
            f"The blocks of {model.name!r} cannot be made anew from their configs: "
            f"{error} Write what has no config (a Python lambda) as a layer class."
        ) from error


def _counts(model: keras.Model) -> dict[tuple[str, str], int]:
    """The numbers of blocks, by `(address, config key)` of where they are counted."""
    found = {}
    for address, layer in tree.by_attribute(model):
        rule = rules.find(layer)
        # `find` has called a function that tells the keys.
        for key in cast("tuple[str, ...]", rule.depth) if rule is not None else ():
            config = layer.get_config()
            if config.get(key) is not None:
                found[(address, key)] = config[key]
    return found


def _kinds(
    model: keras.Model, counts: dict[tuple[str, str], int]
) -> dict[tuple[str, str], list]:
    """The lists with the kind of each block, by `(address, config key)`."""
    places = dict(tree.by_attribute(model))
    return {
        (address, key): list(value)
        for (address, _), count in counts.items()
        for key, value in places[address].get_config().items()
        if isinstance(value, (list, tuple)) and len(value) == count
        # Numbers may be sizes, of which there are as many by chance.
        if all(isinstance(kind, (str, bool)) for kind in value)
    }


def _with_counts(model, counts):
    """A model of other `_counts` (and `_kinds`) of blocks, with fresh weights."""
    places = dict(tree.by_attribute(model))
    found = Widths()
    for (address, key), count in counts.items():
        found.overrides.setdefault(id(places[address]), {})[key] = count
    return build.regrown(model, found)


def _recounted(model, factor, order):
    """A deeper model of a class whose config counts its blocks."""
    counts = _counts(model)
    if not counts:
        cls = type(model).__name__
        raise FusionError(
            f"{cls} {model.name!r} does not tell how many blocks it has. Name the config "
            f"keys that count them: keras_fusion.register({cls}, depth=('num_layers',))."
        )
    kinds = {
        key: own * factor
        if order == "stacked"
        else [x for x in own for _ in range(factor)]
        for key, own in _kinds(model, counts).items()
    }
    deep = _with_counts(model, {k: factor * n for k, n in counts.items()} | kinds)
    places, grown = (dict(tree.by_attribute(m)) for m in (model, deep))
    numbers = _Numbers(places, grown)
    rows = []
    for address, layer in grown.items():
        origin, is_new = numbers.origin(address, factor, order)
        old = places.get(origin)
        if stock_class(old) is stock_class(layer):
            rows.append(Row(address, old, layer, is_new))
        elif layer.trainable_variables:
            raise StructureError(
                f"{type(layer).__name__} at {address!r} of the deeper model has no block "
                f"to copy: at {origin!r} is {type(old).__name__}. Blocks of different "
                "kinds cannot be stacked with this factor and order."
            )
    return deep, rows


class _Numbers:
    """Which number in an address counts blocks: the one that goes further when deeper."""

    def __init__(self, shallow: Iterable[str], deep: Iterable[str]):
        self._old, self._new = self._by_prefix(shallow), self._by_prefix(deep)

    @staticmethod
    def _by_prefix(addresses):
        found = {}
        for address in addresses:
            for match in re.finditer(r"\d+", address):
                found.setdefault(address[: match.start()], set()).add(int(match[0]))
        return found

    def origin(self, address: str, factor: int, order: str) -> tuple[str, bool]:
        """The address of the block that is copied, and whether the copy is a new one."""
        for match in re.finditer(r"\d+", address):
            prefix = address[: match.start()]
            old, new = self._old.get(prefix, set()), self._new[prefix]
            if old and len(new) == factor * len(old):
                place = int(match[0]) - min(new)
                if order == "stacked":
                    copy, place = divmod(place, len(old))
                else:
                    place, copy = divmod(place, factor)
                number = place + min(old)
                return f"{prefix}{number}{address[match.end() :]}", copy > 0
        return address, False
