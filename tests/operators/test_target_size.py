"""`to` as a number of parameters: the nearest size that fits the model."""

import keras
import numpy as np
import pytest
from keras import layers
from models import KINDS, data_for, functional, loss, outputs, perturbed

import keras_fusion
from keras_fusion import DeepFusion, FusionError, FusionOperator, fuse


def odd_t5():
    """Heads of a size of their own, and widths that no small factor fits."""
    import keras_hub

    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.T5Backbone(
        vocabulary_size=20,
        num_layers=1,
        num_heads=6,
        hidden_dim=16,
        intermediate_dim=25,
        key_value_dim=4,
        dropout=0.0,
    )
    return keras_hub.models.T5Seq2SeqLM(backbone, preprocessor=None)


def convolutions():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(6, 3)(inputs)
    x = layers.BatchNormalization()(x)
    x = x + layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = layers.Dense(11, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def einsum():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    x = layers.EinsumDense("ab,bc->ac", (8,))(inputs)
    return keras.Model(inputs, layers.Dense(3)(x))


MODELS = {
    "functional": lambda: functional(24),
    "convolutions": convolutions,
    "einsum": einsum,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_nearest_size_is_taken_and_all_are_as_told(name):
    model = MODELS[name]()
    asked = 1.6 * model.count_params()
    told = FusionOperator(to=asked).sizes(model)
    distances = [abs(size.params - asked) for size in told]
    assert len(told) > 2 and distances == sorted(distances)
    for number, size in enumerate(told[:3]):
        by = {"factor": size.factor} if size.to is None else {"to": size.to}
        assert fuse(model, **by).count_params() == size.params
        if number == 0:
            assert fuse(model, to=asked).count_params() == size.params


def test_head_size_and_function_stay_and_heads_are_whole():
    model, x = perturbed(odd_t5()), data_for("t5", 4)[0]
    grown = fuse(model, to=13_300)
    assert FusionOperator(to=13_300).sizes(model)[0].params == grown.count_params()
    own = grown.backbone.get_config()
    assert own["num_heads"] == 8 and own["key_value_dim"] == 4
    # 16 * 8 / 6 and 25 * 8 / 6, rounded
    assert (own["hidden_dim"], own["intermediate_dim"]) == (21, 33)
    expected = outputs(model, x)
    limit = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(outputs(grown, x), expected, atol=limit)


def test_growing_in_fit_and_at_once():
    model, (x, y) = functional(24), data_for("functional")
    model.compile("adam", loss())
    grow = DeepFusion(at_step=1, to=10_000, verbose=0)
    first, *_ = grow.operator.sizes(model)
    seen = grow.preview(model)
    assert seen.params[1] == first.params
    assert any("Others: " in note and str(first) in note for note in seen.notes)
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[grow])
    (event,) = grow.events
    assert event.params_after == first.params and event.function_change < 1e-5
    assert event.operator == "self-fusion to 10,000 parameters"
    assert DeepFusion.from_config(grow.get_config()).operator.to == 10_000
    again = keras_fusion.preview(model, to=20_000, verbose=0)
    event = keras_fusion.grow(model, to=20_000, verbose=0)
    assert event.params_after == again.params[1] == model.count_params()


def test_a_size_that_is_far_gets_a_warning_with_the_others():
    model = KINDS["bert"]()  # of two heads
    with pytest.warns(UserWarning, match=r"has 1,839 \(x1.5\). Others: 3,027 \(x2\)"):
        fuse(model, to=1_600, seed=0)


@pytest.mark.parametrize(
    ("to", "pattern"),
    [
        (100, "`to=100` parameters: 'functional.*' has 956 already"),
        (1e12, "more than 1000 times as wide"),
        (0.5, "`to` must be a dict.*a number of parameters.*to=0.5"),
        (True, "`to` must be a dict.*to=True"),
        (float("nan"), "`to` must be a dict.*to=nan"),
    ],
)
def test_numbers_that_cannot_be_are_refused(to, pattern):
    with pytest.raises(FusionError, match=pattern):
        fuse(functional(), to=to)


def test_two_sizes_are_refused():
    with pytest.raises(FusionError, match="and so does `factor`"):
        fuse(functional(), to=2000, factor=2)
    with pytest.raises(FusionError, match="so does `operator_or_factor`.*factor=3"):
        keras_fusion.grow(functional(), 3, to=2000)
    with pytest.raises(FusionError, match="distinct parents do it all"):
        fuse([functional(), functional(seed=1)], to=5000)
    with pytest.raises(
        FusionError, match="`to` must be a number of parameters, to tell"
    ):
        FusionOperator(factor=2).sizes(functional())
