"""Every registered rule keeps what fusion promises. A rule without a sample fails."""

import keras
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers
from models import bert, data_for, gpt2, outputs, perturbed, relative_change, t5
from rule_samples import FEATURES, REFUSING, SAMPLES, joined, twice

import keras_fusion
from keras_fusion.testing import run_rule_test

pytestmark = pytest.mark.core


def masked_lm():
    import keras_hub

    return keras_hub.models.BertMaskedLM(bert().backbone)


BUILDERS = {"t5": t5, "bert": bert, "gpt2": gpt2, "masked_lm": masked_lm}


def test_every_rule_is_tested():
    package_rules = {
        key
        for key in keras_fusion.registered()
        if isinstance(key, str) or key.__module__.startswith("keras.")
    }
    untested = package_rules - set(SAMPLES) - set(REFUSING)
    # Those of parts of keras-hub's models are looked for in the models themselves.
    untested = {rule for rule in untested if not str(rule).startswith("keras_hub>")}
    assert not untested, (
        f"Give these rules a sample in tests/support/rule_samples.py: {untested}."
    )


@pytest.mark.core(
    "EinsumDense",
    "MultiHeadAttention",
    "BatchNormalization",
    "Conv1DTranspose",
    "LSTM",
    "Concatenate",
    "keras_hub>TransformerDecoder",
)
@pytest.mark.parametrize("key", SAMPLES, ids=lambda key: getattr(key, "__name__", key))
def test_rule(key):
    make, shape, options = SAMPLES[key]
    run_rule_test(make(), shape, **options)


@pytest.mark.parametrize(
    "key", [layers.Dense, layers.MultiHeadAttention, layers.Conv1D]
)
def test_rule_with_three_copies(key):
    make, shape, options = SAMPLES[key]
    run_rule_test(make(), shape, factor=3, **options)


@pytest.mark.core("bert")
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_rules_of_model_parts(name):
    model = perturbed(BUILDERS[name]())
    x, _ = data_for("bert" if name == "masked_lm" else name, 4)
    if name == "masked_lm":
        x = x | {"mask_positions": x["token_ids"] * 0 + 2}
    for mode in ("zeros", "paired"):
        fused = keras_fusion.fuse(model, factor=2, off_diagonal=mode, seed=0)
        assert type(fused) is type(model)
        assert fused.backbone.hidden_dim == 2 * model.backbone.hidden_dim
        assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5


@pytest.mark.parametrize("cls", REFUSING, ids=lambda cls: cls.__name__)
def test_refusing_rule_says_why(cls):
    call = REFUSING[cls]
    inputs = keras.Input((4, 6))
    x = layers.Dense(6)(inputs)
    layer = cls() if call in (None, joined) else None
    x = call(layer, x) if call else layer(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(keras_fusion.FusionError, match=f"{cls.__name__}.*cannot grow"):
        keras_fusion.fuse(model, factor=2)


def test_refusing_rule_lets_a_fixed_width_pass():
    inputs = keras.Input((6,))
    x = layers.Dense(8)(inputs)
    model = keras.Model(inputs, layers.Softmax()(layers.Dense(3)(x)))
    fused = keras_fusion.fuse(model, factor=2)
    x = outputs(model, keras.random.normal((4, 6)))
    assert fused.output_shape == model.output_shape and x.shape == (4, 3)


EXAMPLES = 6 if keras.config.backend() == "tensorflow" else 2
small = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.tensorflow
@small
@given(units=st.integers(1, 6), features=st.integers(1, 5), factor=st.integers(2, 3))
def test_dense_of_any_width(units, features, factor):
    run_rule_test(layers.Dense(units), (3, features), factor=factor)


@pytest.mark.tensorflow
# Heads of size 1 are left out: Keras 3.15's einsum on TensorFlow miscomputes attention
# of four such heads over four positions, with fusion or without.
@small
@given(
    heads=st.integers(1, 3),
    size=st.integers(2, 4),
    output=st.sampled_from([None, 5]),
    bias=st.booleans(),
)
def test_attention_of_any_width(heads, size, output, bias):
    layer = layers.MultiHeadAttention(heads, size, output_shape=output, use_bias=bias)
    run_rule_test(layer, FEATURES, call=twice)


@pytest.mark.tensorflow
@small
@given(groups=st.integers(1, 2), repeats=st.integers(1, 3), size=st.integers(2, 4))
def test_grouped_attention_of_any_width(groups, repeats, size):
    layer = layers.GroupQueryAttention(size, groups * repeats, groups)
    run_rule_test(layer, FEATURES, call=twice)


def test_einsum_dense_grows_heads():
    def heads(layer, x):
        return layers.EinsumDense("abde,def->abf", (None, 5))(layer(x))

    layer = layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de")
    fused = run_rule_test(layer, FEATURES, call=heads)
    assert fused.layers[2].kernel.shape == (12, 4, 3)


@keras.saving.register_keras_serializable("tests")
class Scaled(layers.Layer):
    """A dense layer without bias, and a scale for each unit."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        shape = (input_shape[-1], self.units)
        self.kernel = self.add_weight(name="kernel", shape=shape)
        self.scale = self.add_weight(name="scale", shape=(self.units,))

    def call(self, x):
        return keras.ops.matmul(x, self.kernel) * self.scale

    def get_config(self):
        return super().get_config() | {"units": self.units}


def register_scaled(kernel, scale):
    roles = {"kernel": kernel, "scale": scale}
    keras_fusion.register(Scaled, widths=("units",), output_width="units", roles=roles)


def test_a_rule_of_ones_own():
    register_scaled(("in", "out"), ("out",))
    run_rule_test(Scaled(5), (3, 4))


# A wrong rule does not pass: what is found by the outputs, by the gradients, by the sizes.
CHANGED = (AssertionError, "self-fusion of Scaled with .* changes the outputs by")
MOVED = (AssertionError, r"gradient of 'layers\[2\].kernel' .* roles \['out', 'out'\]")
UNEQUAL = (keras_fusion.StructureError, r"sizes \[5, 5\] in the parents and 10 in")


@pytest.mark.parametrize(
    ("kernel", "scale", "error"),
    [
        (("out", "in"), ("out",), CHANGED),
        (("in", "in"), ("out",), CHANGED),
        (("in", "out"), ("in",), CHANGED),
        (("out", "out"), ("out",), MOVED),
        (("in", None), ("out",), UNEQUAL),
        (("in", "out"), (None,), UNEQUAL),
    ],
)
def test_a_wrong_rule_of_ones_own(kernel, scale, error):
    register_scaled(kernel, scale)
    with pytest.raises(error[0], match=error[1]):
        run_rule_test(Scaled(5), (3, 4))
