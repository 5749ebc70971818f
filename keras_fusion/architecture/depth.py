"""Parents of different depth: the shallower one continues as an identity.

A pre-norm residual block is an identity when what it adds to the stream is zero. So a
shallower parent is built anew as deep as the deepest, takes its weights over, and in its
new blocks just those weights are zero through which a block writes to the stream. The
others keep their initial values, so that the new blocks learn from the first step on.
Which weights those are is found by trying, on the model itself.

How many blocks a class has its config tells, by the key that its rule names. A plain
functional model has no such key: blocks of its own are repeated until it is wired as the
deepest one.
"""

import keras
import numpy as np

from keras_fusion.architecture import alignment, build
from keras_fusion.architecture.widths import Widths
from keras_fusion.errors import FusionError, StructureError
from keras_fusion.models import graph as graphs
from keras_fusion.models import host, probe, rules, tree


def equalized(parents: list[keras.Model]) -> list[keras.Model]:
    """The parents, each as deep as the deepest.

    Args:
        parents: K built models, plain functional ones or such whose classes, or those
            of the models that they hold, tell by `depth` in their rules which config
            keys count blocks.

    Returns:
        The parents themselves where depths are equal; otherwise new models, of equal
        function, in the place of the shallower ones.

    Raises:
        FusionError: if a shallower parent cannot continue as an identity.
    """
    if all(graphs.is_plain(parent) for parent in parents):
        deepest = max(parents, key=lambda parent: len(graphs.read(parent).calls))
        return [_as_deep_as(deepest, parent) for parent in parents]
    depths = [counts(parent) for parent in parents]
    if any(d.keys() != depths[0].keys() for d in depths):
        return parents  # Not of one architecture; that is told elsewhere.
    deepest = {key: max(d[key] for d in depths) for key in depths[0]}
    return [
        parent if own == deepest else deepened(parent, deepest)
        for parent, own in zip(parents, depths, strict=True)
    ]


def _as_deep_as(deepest, parent):
    """A plain model as it is, or with blocks repeated."""
    rows = alignment.align(parent, deepest)
    if rows is None or not any(is_new for _, _, is_new in rows):
        return parent  # If it is of another architecture, that is told elsewhere.
    deep = _like(deepest, parent, rows)
    new = {}
    for name, like, is_new in rows:
        layer = deep.get_layer(name)
        if is_new:
            new |= {f"{name}.{a}": sub for a, sub in tree.walk(layer)}
        else:
            for address, pair in tree.lockstep([parent.get_layer(like), layer]):
                _copy(*pair, address)
    _make_identities(parent, deep, new)
    return deep


def _like(deepest, parent, rows):
    """A model wired as the deepest one, of another one's layers."""
    config = graphs.as_functional(deepest).get_config()
    own = {
        entry["name"]: entry
        for entry in graphs.as_functional(parent).get_config()["layers"]
    }
    source = {name: like for name, like, _ in rows}
    for entry in config["layers"]:
        if entry["name"] in source:
            like = own[source[entry["name"]]]
            entry["config"] = like["config"] | {"name": entry["name"]}
            entry["build_config"] = like.get("build_config")
    return rewired(parent, config)


def rewired(model: keras.Model, config: dict) -> keras.Model:
    """A plain model of another graph.

    Args:
        model: a plain functional or Sequential model, whose name and classes are taken.
        config: a functional model's config.
    """
    # Classes that nobody has registered with Keras are known from the model. Keras's own
    # are left out: a layer and an operation of it may have one name (`Add`).
    layers = tree.walk(model)
    classes = {type(layer) for _, layer in layers}
    classes = {c.__name__: c for c in classes if c.__module__.split(".")[0] != "keras"}
    made = type(graphs.as_functional(model)).from_config(config, classes)
    made.name = model.name
    if isinstance(model, keras.Sequential):
        return keras.Sequential(made.layers, name=model.name)
    return made


def counts(model: keras.Model) -> dict[tuple[str, str], int]:
    """How many blocks there are, by `(address, config key)` of where they are counted."""
    found = {}
    for address, layer in tree.by_attribute(model):
        rule = rules.find(layer)
        for key in rule.depth if rule is not None else ():
            config = layer.get_config()
            if config.get(key) is not None:
                found[(address, key)] = config[key]
    return found


def deepened(model: keras.Model, depths: dict) -> keras.Model:
    """A model of the same function with more blocks.

    Args:
        model: a built model.
        depths: dict from `(address, config key)` to the number of blocks.

    Returns:
        A new model, built and filled.

    Raises:
        FusionError: if a block cannot be made an identity.
    """
    places = dict(tree.by_attribute(model))
    deep, new = with_counts(model, depths), {}
    for address, layer in tree.by_attribute(deep):
        if address in places:
            _copy(places[address], layer, address)
        else:
            new[address] = layer
    _make_identities(model, deep, new)
    return deep


def with_counts(model: keras.Model, depths: dict) -> keras.Model:
    """A model with other numbers of blocks and fresh weights, see `counts`."""
    places = dict(tree.by_attribute(model))
    found = Widths()
    for (address, key), count in depths.items():
        found.overrides.setdefault(id(places[address]), {})[key] = count
    return build.regrown(model, found)


def _copy(old, new, address):
    for source, target in tree.shared_variables([old, new]):
        if source.shape != target.shape:
            raise StructureError(
                f"{address!r} changes its shape from {tuple(source.shape)} to "
                f"{tuple(target.shape)} with the depth. Use parents of equal depth."
            )
        host.write(target, host.read(source))


def _make_identities(model, deep, new):
    """Zeroes in new blocks the kernels that write to the stream, and no others."""
    variables = (v for layer in new.values() for v in tree.own_variables(layer))
    kernels = [v for v in variables if v.trainable and len(v.shape) > 1]
    for variable in quiet(model, deep, kernels):
        host.write(variable, np.zeros(variable.shape, variable.dtype))


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
    inputs = probe.accepted(model)
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


def check_live(live: keras.Model, parents: list[keras.Model]) -> None:
    """Checks that the model in training is as deep as its partners.

    Raises:
        FusionError: if it would have to be built anew.
    """
    if parents[0] is not live:
        raise FusionError(
            f"The live model {live.name!r} is shallower than a partner. Train the "
            "deepest one, and give the shallower ones as `partners`."
        )
