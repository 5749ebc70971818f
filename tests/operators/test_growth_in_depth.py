"""Growth in depth: which block is copied where, and what of the optimizer goes along."""

import keras
import numpy as np
import pytest
from keras import layers
from models import bert, data_for, functional, loss, numpy, outputs, relative_change
from stacks import gpt2, plain, stack
from transformers import ids_for

import keras_fusion
from keras_fusion import (
    AtStep,
    Chain,
    DepthStacking,
    FusionError,
    GrowModel,
    HyperCloning,
)
from keras_fusion.architecture.stacks import stacks
from keras_fusion.models import graph

ORDERS = {"stacked": [0, 1, 0, 1], "interleaved": [0, 0, 1, 1]}


@pytest.mark.core
@pytest.mark.parametrize("order", ORDERS)
def test_blocks_of_a_registered_class_are_those_of_the_order(order):
    model = stack(8, 2)
    deep = DepthStacking(order=order).plan(model).fill()
    assert deep.blocks == 4
    for new, old in enumerate(ORDERS[order]):
        for name in ("attentions", "ups", "downs"):
            pair = getattr(deep, name)[new], getattr(model, name)[old]
            for a, b in zip(*(layer.weights for layer in pair), strict=True):
                np.testing.assert_array_equal(numpy(a), numpy(b))


@pytest.mark.core
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_a_functional_model_runs_its_blocks_in_the_order(order, nested):
    keras.utils.set_random_seed(0)

    def block():
        inputs = keras.Input((8,))
        h = layers.Dense(16, activation="gelu")(layers.LayerNormalization()(inputs))
        return keras.Model(inputs, inputs + layers.Dense(8)(h))

    def called(part, x):
        if nested:
            return part(x)
        norm, up, down = part.layers[1], part.layers[2], part.layers[3]
        return x + down(up(norm(x)))

    first, last, blocks = layers.Dense(8), layers.Dense(3), [block(), block()]
    inputs = keras.Input((4,))
    x = first(inputs)
    for part in blocks:
        x = called(part, x)
    model = keras.Model(inputs, last(layers.LayerNormalization(name="end")(x)))
    deep = DepthStacking(order=order).plan(model).fill()
    data = np.random.default_rng(0).standard_normal((5, 4)).astype("float32")
    x = first(data)
    for i in ORDERS[order]:
        x = blocks[i](x)
    expected = numpy(last(model.get_layer("end")(x)))
    np.testing.assert_allclose(outputs(deep, data), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("post", [False, True], ids=["pre", "post"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder"])
def test_stacks_are_found(kind, depth, post):
    found = stacks(graph.read(plain(kind, 8, 0, depth, encoder_depth=2, post=post)))
    depths = [depth] if kind == "encoder" else sorted([depth, 2])
    segments = sorted(
        len(stack.layers) * len(stack.layers[0]) // (2 if post else 1)
        for stack in found
    )
    per_layer = {"encoder": 2, "encoder_decoder": 3}
    expected = [depth * per_layer[kind]] + [4] * (kind == "encoder_decoder")
    assert segments == sorted(expected), depths


@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder"])
def test_identities_keep_the_function_of_functional_models(kind):
    model, x = plain(kind, 8, 0, 2, encoder_depth=1), ids_for(kind)
    deep = DepthStacking(identity=True).plan(model).fill()
    assert deep.count_params() > 1.5 * model.count_params()
    assert relative_change(outputs(model, x), outputs(deep, x)) < 1e-5


@pytest.mark.core
@pytest.mark.parametrize("make", [lambda: stack(8, 2), functional, lambda: gpt2(2)])
def test_new_blocks_take_the_state_of_their_origin_along(make):
    model = make()
    x, y = data_for("gpt2" if "gpt2" in model.name else "functional", 16)
    model.compile(keras.optimizers.Adam(0.01), loss())
    model.fit(x, y, batch_size=8, verbose=0)
    plan = DepthStacking().plan(model)
    plan.fill()
    grown = keras_fusion.graft.grown_optimizer(plan, "carry")
    assert int(numpy(grown.iterations)) == 2
    old, new = map(keras_fusion.graft.read_state, (model.optimizer, grown))
    assert len(new.variables) > len(old.variables)
    for item in plan.layouts:
        if not item.target.trainable:
            continue
        places = old.positions()[id(item.sources[0])], new.positions()[id(item.target)]
        for name in ("momentums", "velocities"):
            values = (s.lists[name][i] for s, i in zip((old, new), places, strict=True))
            a, b = map(numpy, values)
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_new_identities_learn():
    model = functional()
    x, y = data_for("functional", 64)
    model.compile(keras.optimizers.Adam(0.01), loss())
    grow = GrowModel(DepthStacking(identity=True), AtStep(2), verbose=0)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[grow])
    assert grow.events[0].function_change < 1e-6
    new = [layer for layer in model.layers if "copy" in layer.name and layer.weights]
    assert all(np.any(numpy(v)) for layer in new for v in layer.trainable_variables)


def test_dropouts_of_copies_draw_masks_of_their_own():
    model = functional(dropout=0.5)
    deep = DepthStacking().plan(model).fill()
    seeds = [
        numpy(layer.seed_generator.state)
        for layer in deep.layers
        if isinstance(layer, layers.Dropout)
    ]
    assert len(seeds) == 2 and not np.array_equal(*seeds)


def test_old_weights_are_accepted_after_a_chain():
    """As `EarlyStopping` sets them: through every growth of the chain."""
    model = functional()
    x, y = data_for("functional", 32)
    model.compile("adam", loss())
    chain = Chain([HyperCloning(), DepthStacking(identity=True)])
    grow = GrowModel(chain, AtStep(2), verbose=0)
    old, before = model.get_weights(), outputs(model, x[:4])
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[grow])
    model.set_weights(old)
    assert relative_change(before, outputs(model, x[:4])) < 1e-5
    assert grow.blocks.count == 1 or len(grow.blocks.masks())


def test_frozen_blocks_have_frozen_copies():
    model = stack(8, 2)
    model.ups[1].trainable = False
    deep = DepthStacking().plan(model).fill()
    assert [layer.trainable for layer in deep.ups] == [True, False, True, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DepthStacking(1), "factor=1"),
        (lambda: DepthStacking(1.5), "factor=1.5"),
        (lambda: DepthStacking(order="random"), "order='random'"),
        (lambda: Chain([]), r"operators=\[\]"),
        (lambda: DepthStacking(identity=True).plan(bert()), "identity=False"),
        (
            lambda: DepthStacking().plan(keras.Sequential([layers.Dense(2)])),
            "is not built",
        ),
        (
            lambda: DepthStacking().plan(
                keras.Sequential([keras.Input((4,)), layers.Dense(2)])
            ),
            "has no blocks to repeat",
        ),
    ],
)
def test_errors_name_the_argument_and_the_way_out(make, message):
    with pytest.raises(FusionError, match=message):
        make()


def test_a_class_that_does_not_tell_its_depth_is_refused():
    from models import subclassed

    with pytest.raises(FusionError, match=r"register\(Subclassed.*depth="):
        DepthStacking().plan(subclassed())


@keras.saving.register_keras_serializable("tests")
class Uneven(keras.Model):
    """Blocks of different widths, which cannot stand for each other."""

    def __init__(self, blocks, **kwargs):
        super().__init__(**kwargs)
        self.blocks = blocks
        self.downs = [layers.Dense(4 + (i > 1)) for i in range(blocks)]
        self.build((None, 4))

    def build(self, input_shape):
        for layer in self.downs:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)
        self.built = True

    def call(self, x):
        for layer in self.downs:
            x = layer(x)
        return x

    def get_config(self):
        return super().get_config() | {"blocks": self.blocks}


keras_fusion.register(Uneven, depth=("blocks",))


def test_blocks_of_another_shape_are_refused():
    with pytest.raises(
        keras_fusion.StructureError, match=r"\(4, 5\).*cannot be stacked"
    ):
        DepthStacking().plan(Uneven(2))


def residual(blocks=2):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6,))
    for i in range(blocks):
        h = layers.Dense(12, "gelu", name=f"up{i}")(x)
        x = x + layers.Dense(6, name=f"down{i}")(h)
    return keras.Model(inputs, layers.Dense(1)(x))


def points():
    x = np.random.default_rng(0).standard_normal((64, 6)).astype("float32")
    return x, (x[:, :1] * x[:, 1:2]).astype("float32")


@pytest.mark.core
def test_the_average_of_identities_is_an_identity():
    """Averaged weights keep the function as the weights do."""
    (x, y), model = points(), residual()
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9), "mse")
    for _ in range(5):
        model.train_on_batch(x, y)

    def averaged():
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()
        own = [numpy(v) for v in model.trainable_variables]
        optimizer = model.optimizer
        averages = optimizer._model_variables_moving_average
        for variable, value in zip(
            optimizer._trainable_variables, averages, strict=True
        ):
            variable.assign(value)
        found = outputs(model, x)
        for variable, value in zip(model.trainable_variables, own, strict=True):
            variable.assign(value)
        return found

    before = averaged()
    keras_fusion.grow(model, DepthStacking(identity=True), verbose=0)
    np.testing.assert_allclose(averaged(), before, rtol=1e-5, atol=1e-6)
    model.train_on_batch(x, y)


@pytest.mark.core
@pytest.mark.skipif(
    keras.config.backend() == "jax",
    reason="Keras's optimizers on JAX train all that they were built with",
)
@pytest.mark.parametrize("identity", [False, True])
def test_layers_frozen_since_the_optimizer_was_built(identity):
    (x, y), model = points(), residual()
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(x, y, verbose=0)
    model.get_layer("up0").trainable = False
    model.compile(model.optimizer, "mse")
    keras_fusion.grow(model, DepthStacking(identity=identity), verbose=0)
    frozen = [layer for layer in model.layers if not layer.trainable]
    before = [numpy(v).copy() for layer in frozen for v in layer.weights]
    model.fit(x, y, verbose=0)
    after = [numpy(v) for layer in frozen for v in layer.weights]
    assert len(frozen) == 2
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
