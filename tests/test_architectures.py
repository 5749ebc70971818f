"""A search over random architectures for one in which fusion breaks its promises.

The number of examples is `KERAS_FUSION_EXAMPLES` (25 of each kind by default):

    KERAS_FUSION_EXAMPLES=500 pytest tests/test_architectures.py
"""

import os

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers
from models import outputs, perturbed, relative_change

import keras_fusion
from keras_fusion import DeepFusion, fuse

VOCABULARY, LENGTH, FEATURES, HEAD = 7, 5, 3, 2
EXAMPLES = int(os.environ.get("KERAS_FUSION_EXAMPLES", "25"))
search = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
NORMS = {
    None: lambda: layers.Identity(),
    "layer": layers.LayerNormalization,
    "rms": layers.RMSNormalization,
    "batch": layers.BatchNormalization,
}
ACTIVATIONS = ("relu", "gelu", "tanh", None)

residual = st.sampled_from(["none", "pre", "post"])
block = st.one_of(
    st.tuples(st.just("dense"), st.sampled_from(ACTIVATIONS), st.integers(1, 3)),
    st.tuples(st.just("gated"), st.sampled_from(ACTIVATIONS), st.integers(1, 3)),
    st.tuples(st.just("attention"), st.booleans(), st.integers(1, 2)),
    st.tuples(st.just("grouped"), st.booleans(), st.integers(1, 2)),
    st.tuples(st.just("conv"), st.sampled_from(ACTIVATIONS), st.integers(1, 3)),
    st.tuples(st.just("join"), st.booleans(), st.integers(1, 3)),
)
specs = st.fixed_dictionaries(
    {
        "ids": st.booleans(),
        "tied": st.booleans(),
        "blocks": st.lists(st.tuples(block, residual), min_size=1, max_size=3),
        "norm": st.sampled_from(sorted(NORMS, key=str)),
        "pool": st.sampled_from([None, "mean", "flatten"]),
        "outputs": st.integers(1, 2),
    }
)


def update(x, spec, width):
    """What one block computes, as wide as the stream."""
    kind, option, factor = spec
    heads = width // HEAD
    if kind == "attention":
        return layers.MultiHeadAttention(heads, HEAD, use_bias=option)(x, x)
    if kind == "grouped":
        layer = layers.GroupQueryAttention(HEAD, 2 * heads, heads, use_bias=option)
        return layer(x, x)
    if kind == "conv":
        return layers.Conv1D(width, factor, padding="same", activation=option)(x)
    if kind == "join":
        both = [x, layers.Dense(factor * width, activation="tanh")(x)]
        return layers.Dense(width, use_bias=option)(layers.Concatenate()(both))
    x_hidden = layers.Dense(factor * width, activation=option)(x)
    if kind == "gated":
        gate = layers.Dense(factor * width)(x)
        x_hidden = layers.Multiply()([x_hidden, gate])
    return layers.Dense(width)(x_hidden)


def build(spec, width, seed=0):
    """The functional model of a spec."""
    keras.utils.set_random_seed(seed)
    norm = NORMS[spec["norm"]]
    if spec["ids"]:
        inputs = keras.Input((LENGTH,), dtype="int32")
        embedding = layers.ReversibleEmbedding(VOCABULARY, width)
        x = embedding(inputs)
    else:
        inputs = keras.Input((LENGTH, FEATURES))
        x = layers.Dense(width)(inputs)
    for block_spec, form in spec["blocks"]:
        if form == "pre":
            x = x + update(norm()(x), block_spec, width)
        elif form == "post":
            x = norm()(layers.Add()([x, update(x, block_spec, width)]))
        else:
            x = update(norm()(x), block_spec, width)
    results = []
    if spec["ids"] and spec["tied"]:
        # A layer that can carry the factor of the mean stands before a tied readout.
        results.append(embedding(layers.LayerNormalization()(x), reverse=True))
    if spec["pool"] == "mean":
        x = layers.GlobalAveragePooling1D()(x)
    elif spec["pool"] == "flatten":
        x = layers.Flatten()(x)
    results += [layers.Dense(i + 2)(x) for i in range(spec["outputs"])]
    return perturbed(keras.Model(inputs, results), seed)


def batch(spec, count=4):
    rng = np.random.default_rng(1)
    if spec["ids"]:
        return rng.integers(0, VOCABULARY, (count, LENGTH))
    return rng.standard_normal((count, LENGTH, FEATURES)).astype("float32")


def results_of(model, x):
    tensors = model(keras.ops.convert_to_tensor(x))
    return [
        np.asarray(keras.ops.convert_to_numpy(y)) for y in keras.tree.flatten(tensors)
    ]


def assert_close(expected, actual, tolerance=1e-5):
    for a, b in zip(expected, actual, strict=True):
        # Relative to all of the outputs: one that is small by chance cancels.
        assert np.max(np.abs(a - b)) <= tolerance * max(1.0, np.max(np.abs(a)))


@search
@given(spec=specs, heads=st.integers(1, 3), factor=st.integers(2, 3))
def test_self_fusion_of_random_architectures(spec, heads, factor):
    model, x = build(spec, HEAD * heads), batch(spec)
    expected = results_of(model, x)
    for mode in ("zeros", "paired"):
        fused = fuse(model, factor=factor, off_diagonal=mode, seed=0)
        assert_close(expected, results_of(fused, x))
    keras.utils.clear_session()


@search
@given(spec=specs, widths=st.lists(st.integers(1, 3), min_size=2, max_size=3))
def test_distinct_parents_of_random_architectures(spec, widths):
    parents = [build(spec, HEAD * heads, i) for i, heads in enumerate(widths)]
    x = batch(spec)
    flat = spec["pool"] == "flatten"
    fused = fuse(parents, norms="block")
    every = [results_of(parent, x) for parent in parents]
    expected = [np.mean(ys, axis=0) for ys in zip(*every, strict=True)]
    assert_close(expected, results_of(fused, x))
    assert flat or fused.count_params() > max(p.count_params() for p in parents)
    keras.utils.clear_session()


@search
@given(spec=specs, whole=st.integers(1, 2), block=st.booleans())
def test_fractional_growth_of_random_architectures(spec, whole, block):
    model, x = build(spec, 2 * HEAD), batch(spec)
    expected = results_of(model, x)
    norms = "block" if block else "joint"
    tied = spec["ids"] and spec["tied"]  # behind a layer norm
    joint = not block and (tied or spec["norm"] == "layer")
    try:
        fused = fuse(model, factor=whole + 0.5, norms=norms, seed=0)
    except keras_fusion.FusionError as error:
        # One joint layer norm counts new features that an activation has made.
        assert joint and "it is not used" in str(error)
    else:
        # What is left of that is refused above this tolerance only.
        assert_close(expected, results_of(fused, x), 2e-3 if joint else 1e-5)
    keras.utils.clear_session()


@pytest.mark.slow
@settings(search, max_examples=max(3, EXAMPLES // 8))
@given(spec=specs)
def test_growth_in_fit_of_random_architectures(spec, tmp_path_factory):
    model, x = build(spec, 4), batch(spec, 8)
    y = [0 * y for y in results_of(model, x)]
    model.compile(keras.optimizers.Adam(1e-3), loss=["mse"] * len(y))
    grow = DeepFusion(at_step=1, seed=0, probe=x, verbose=0)
    history = model.fit(
        x, y if len(y) > 1 else y[0], batch_size=4, verbose=0, callbacks=[grow]
    )
    assert grow.events[0].function_change < 1e-5
    assert np.isfinite(history.history["loss"]).all()
    path = tmp_path_factory.mktemp("model") / "model.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    assert_close(results_of(model, x), results_of(again, x), 1e-6)
    keras.utils.clear_session()


# Subclassed models.


@keras.saving.register_keras_serializable("tests")
class Composite(layers.Layer):
    """A block with a weight of its own, and lists and dicts of layers."""

    def __init__(self, units, depth=1, gate=False, **kwargs):
        super().__init__(**kwargs)
        self.units, self.depth, self.gate = units, depth, gate
        self.hidden = [layers.Dense(units, activation="gelu") for _ in range(depth)]
        self.parts = {"norm": layers.LayerNormalization(), "out": layers.Dense(units)}

    def build(self, input_shape):
        self.factor = self.add_weight(name="factor", shape=(self.units,))
        x = input_shape
        for layer in self.hidden:
            layer.build(x)
            x = (*x[:-1], self.units)
        for layer in self.parts.values():
            layer.build(x)

    def call(self, x):
        for layer in self.hidden:
            x = layer(x)
        y = self.parts["norm"](self.parts["out"](x))
        return y * keras.ops.tanh(self.factor) * (x if self.gate else 1.0)

    def get_config(self):
        own = {"units": self.units, "depth": self.depth, "gate": self.gate}
        return super().get_config() | own


@keras.saving.register_keras_serializable("tests")
class Stranger(keras.Model):
    """A model with a shared layer, an embedding tied by hand, and two outputs."""

    def __init__(self, width, depth=1, gate=False, twice=False, **kwargs):
        super().__init__(**kwargs)
        self.width, self.depth, self.gate, self.twice = width, depth, gate, twice
        self.embedding = layers.Embedding(VOCABULARY, width)
        self.blocks = [Composite(width, depth, gate) for _ in range(2)]
        self.last_norm = layers.LayerNormalization()
        self.classify = layers.Dense(3)

    def call(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = x + block(x)
            x = x + block(x) if self.twice else x
        table = keras.ops.transpose(self.embedding.embeddings)
        tokens = keras.ops.matmul(self.last_norm(x), table)
        return {"tokens": tokens, "class": self.classify(x[:, 0])}

    def get_config(self):
        own = {"width": self.width, "depth": self.depth}
        own |= {"gate": self.gate, "twice": self.twice}
        return super().get_config() | own


keras_fusion.register(
    Composite, widths=("units",), output_width="units", roles={"factor": ("out",)}
)
keras_fusion.register(Stranger, widths=("width",), tied_readout="last_norm")


@search
@given(
    width=st.integers(2, 5),
    depth=st.integers(1, 2),
    gate=st.booleans(),
    twice=st.booleans(),
    factor=st.integers(2, 3),
)
def test_self_fusion_of_strangers(width, depth, gate, twice, factor):
    keras.utils.set_random_seed(0)
    model, x = Stranger(width, depth, gate, twice), batch({"ids": True})
    model(x)
    perturbed(model)
    model.blocks[0].trainable = False
    expected = results_of(model, x)
    for mode in ("zeros", "paired"):
        fused = fuse(model, factor=factor, off_diagonal=mode, seed=0)
        assert_close(expected, results_of(fused, x))
        assert len(fused.trainable_variables) == len(model.trainable_variables)
    keras.utils.clear_session()


def test_what_mixes_features_is_refused_by_name():
    """A Lambda is a black box; an activation is tried."""
    inputs = keras.Input((FEATURES,))
    for layer, name in (
        (layers.Activation("softmax", name="weights"), "'softmax' of layer 'weights'"),
        (layers.Dense(4, activation="log_softmax", name="b"), "softmax' of layer 'b'"),
        (layers.Lambda(lambda h: 2 * h, name="twice"), "'twice' of class Lambda"),
    ):
        x = layer(layers.Dense(4)(inputs))
        with pytest.raises(keras_fusion.FusionError, match=name):
            fuse(keras.Model(inputs, layers.Dense(2)(x)), factor=2)
    # What does not grow may be anything.
    x = layers.Dense(2, activation="softmax")(layers.Dense(4)(inputs))
    assert fuse(keras.Model(inputs, x), factor=2).layers[1].units == 8


def test_weights_tied_by_hand_are_refused():
    class Tied(layers.Dense):
        """A dense layer with the kernel of another one."""

        def __init__(self, units, like=None, **kwargs):
            super().__init__(units, use_bias=False)
            self._like = [like]

        def build(self, input_shape):
            if self._like[0] is None:
                super().build(input_shape)
            else:
                self._kernel = self._like[0].kernel

    inputs = keras.Input((4,))
    first = layers.Dense(4)
    x = Tied(4, first)(first(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(keras_fusion.FusionError, match="tied by hand.*into"):
        fuse(model, factor=2)


def test_a_lambda_in_a_live_model_leaves_it_as_it_is():
    inputs = keras.Input((FEATURES,))
    x = layers.Dense(4)(inputs)
    x = layers.Lambda(lambda h: keras.ops.softmax(h), output_shape=(4,))(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).standard_normal((8, FEATURES))
    before = outputs(model, x)
    with pytest.raises(keras_fusion.FusionError, match=r"Lambda|outputs changed"):
        grow = DeepFusion(at_step=1, verbose=0)
        model.fit(x, x[:, :2], batch_size=4, verbose=0, callbacks=[grow])
    assert model.layers[1].units == 4 and outputs(model, x).shape == before.shape


def test_quantized_and_lora_layers_are_refused():
    def dense_model():
        inputs = keras.Input((8,))
        x = layers.Dense(8, activation="relu", name="hidden")(inputs)
        return keras.Model(inputs, layers.Dense(2)(x))

    quantized = dense_model()
    quantized.quantize("int8")
    lora = dense_model()
    lora.get_layer("hidden").enable_lora(2)
    for model, word in ((quantized, "quantized"), (lora, "LoRA")):
        with pytest.raises(keras_fusion.FusionError, match=word):
            fuse(model, factor=2)
    # Merged, as the message says, it can be fused.
    hidden = lora.get_layer("hidden")
    merged = dense_model()
    merged.get_layer("hidden").kernel.assign(hidden.kernel)
    merged.get_layer("hidden").bias.assign(hidden.bias)
    x = np.ones((2, 8), "float32")
    assert (
        relative_change(outputs(merged, x), outputs(fuse(merged, factor=2), x)) < 1e-5
    )
