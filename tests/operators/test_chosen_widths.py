"""`only`: which widths of a model grow, and what stays as it is."""

import keras
import numpy as np
import pytest
from models import KINDS, data_for, functional, loss, outputs, perturbed, values

import keras_fusion
from keras_fusion import DeepFusion, FusionError, FusionOperator, fuse

pytestmark = pytest.mark.core


def grown_shapes(before, after):
    """The shapes of the weights that differ."""
    pairs = zip(before.weights, after.weights, strict=True)
    shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in pairs]
    return [pair for pair in shapes if pair[0] != pair[1]]


def assert_same_function(model, fused, kind):
    x, _ = data_for(kind)
    expected = outputs(model, x)
    size = np.abs(expected).max()
    np.testing.assert_allclose(outputs(fused, x), expected, atol=1e-5 * size)


@pytest.mark.parametrize("factor", [1.5, 2, 3])
def test_feed_forward_widths_alone(factor):
    model = perturbed(functional())
    fused = fuse(model, factor=factor, only="feed_forward")
    wide = int(16 * factor)
    expected = [((8, 16), (8, wide)), ((16,), (wide,)), ((16, 8), (wide, 8))]
    assert grown_shapes(model, fused) == expected
    assert_same_function(model, fused, "functional")
    norms = [x for x in fused.layers if isinstance(x, keras.layers.LayerNormalization)]
    assert {norm.epsilon for norm in norms} == {model.layers[2].epsilon}


def test_heads_alone():
    model = perturbed(functional())
    fused = fuse(model, factor=2, only="heads", off_diagonal="paired", seed=0)
    assert fused.layers[3].num_heads == 4 and fused.layers[1].output_dim == 8
    assert all(2 in a and 4 in b for a, b in grown_shapes(model, fused))
    assert_same_function(model, fused, "functional")


def test_the_residual_stream_alone():
    model = perturbed(functional())
    fused = fuse(model, factor=2, only="residual")
    assert fused.layers[1].output_dim == 16 and fused.layers[3].num_heads == 2
    assert [x.units for x in fused.layers if hasattr(x, "units")] == [16, 16, 20]
    assert_same_function(model, fused, "functional")


def test_all_kinds_together_are_all_widths():
    model = perturbed(functional())
    some = fuse(model, factor=2, seed=0, only=["feed_forward", "heads", "residual"])
    every = fuse(model, factor=2, seed=0)
    for ours, theirs in zip(values(some), values(every), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_layers_by_name_and_by_pattern():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, "relu", name="first")(inputs)
    x = keras.layers.Dense(6, "relu", name="block_1_up")(x)
    x = keras.layers.Dense(6, "relu", name="block_2_up")(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))

    def units(only):
        return [x.units for x in fuse(model, factor=2, only=only).layers[1:]]

    assert units("first") == [16, 6, 6, 2]
    assert units("block_*") == [8, 12, 12, 2]
    assert units(["first", "block_2_up"]) == [16, 6, 12, 2]


def added(x, y):
    return keras.layers.Add()([x, y])


@pytest.mark.parametrize("add", [lambda x, y: x + y, added], ids=["sum", "layer"])
def test_what_is_added_to_is_a_stream(add):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8)(inputs)
    for _ in range(2):
        x = add(x, keras.layers.Dense(8)(keras.layers.Dense(12, "gelu")(x)))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))

    def units(only):
        grown = fuse(model, factor=2, only=only)
        return [x.units for x in grown.layers if hasattr(x, "units")]

    assert units("residual") == [16, 12, 16, 12, 16, 2]
    assert units("feed_forward") == [8, 24, 8, 24, 8, 2]


@pytest.mark.core("1.5-t5", "2-gpt2")
@pytest.mark.parametrize("kind", ["t5", "t5_untied", "gpt2", "bert"])
@pytest.mark.parametrize("factor", [1.5, 2])
def test_keras_hub_by_kind_and_by_key(kind, factor):
    model = perturbed(KINDS[kind]())
    fused = fuse(model, factor=factor, only="feed_forward")
    assert_same_function(model, fused, kind)
    backbone = fused.backbone
    assert backbone.intermediate_dim == int(16 * factor) and backbone.hidden_dim == 8
    by_key = fuse(model, factor=factor, only="intermediate_dim")
    assert [v.shape for v in by_key.weights] == [v.shape for v in fused.weights]


def test_a_class_of_ones_own_by_the_keys_of_its_config():
    model = perturbed(KINDS["subclassed"]())
    fused = fuse(model, factor=2, only=["dim", "heads"])
    assert (fused.dim, fused.heads) == (16, 4)
    with pytest.raises(
        FusionError, match="only. has chosen no width by .'feed_forward'"
    ):
        fuse(model, factor=2, only="feed_forward")


def test_growing_in_fit_carries_the_optimizer():
    model, (x, y) = functional(), data_for("functional")
    model.compile(keras.optimizers.Adam(0.01), loss())
    grow = DeepFusion(at_step=2, factor=1.5, only="feed_forward", verbose=0)
    assert grow.preview(model).layers[-4].after == {"kernel": (8, 24), "bias": (24,)}
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[grow])
    (event,) = grow.events
    assert event.function_change < 1e-5
    assert event.operator == "self-fusion x1.5 of feed_forward"
    again = DeepFusion.from_config(grow.get_config())
    assert again.operator.only == "feed_forward"


# What is refused.


@pytest.mark.parametrize(
    ("only", "pattern"),
    [
        ("nothing", r"chosen no width by \['nothing'\].*names of layers.*'embedding"),
        (["heads", "feed_forwards"], r"chosen no width by \['feed_forwards'\]"),
        ([], "`only` must be None, or one or a list.*only=.."),
        (3, "`only` must be.*only=3"),
        (
            "dense_out",
            r"`only` names 'dense_out', whose width must be that of \['embed",
        ),
    ],
)
def test_what_chooses_nothing_is_refused(only, pattern):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(20, 8, name="embedding")(inputs)
    x = x + keras.layers.MultiHeadAttention(2, 4)(x, x)
    h = keras.layers.Dense(16)(x)
    x = x + keras.layers.Dense(8, name="dense_out")(h)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    with pytest.raises(FusionError, match=pattern):
        fuse(model, factor=2, only=only)


@pytest.mark.parametrize("only", ["heads", "residual"])
def test_a_head_size_that_would_change_is_refused(only):
    with pytest.raises(FusionError, match="change the head size.*heads and residual"):
        fuse(KINDS["gpt2"](), factor=2, only=only)


def test_it_is_for_a_self_fusion():
    with pytest.raises(FusionError, match="only. chooses.*distinct parents do it all"):
        fuse([functional(), functional(seed=1)], only="heads")
    with pytest.raises(FusionError, match="`into` says it all. Received: only='heads'"):
        FusionOperator(into=functional, only="heads")
    with pytest.raises(FusionError, match="distinct parents"):
        DeepFusion(at_step=1, partners=[functional()], only="heads")


# `to`: sizes in place of a factor.


@pytest.mark.core("t5-to0", "subclassed-to4")
@pytest.mark.parametrize(
    ("kind", "to"),
    [
        ("t5", {"intermediate_dim": 20}),
        ("t5", {"hidden_dim": 16, "num_heads": 4}),
        ("t5", {"num_heads": 5, "intermediate_dim": 40}),
        ("gpt2", {"hidden_dim": 16, "num_heads": 4, "intermediate_dim": 40}),
        ("subclassed", {"dim": 24, "heads": 6}),
    ],
)
def test_sizes_by_the_keys_of_a_config(kind, to):
    model = perturbed(KINDS[kind]())
    fused = fuse(model, to=to)
    assert_same_function(model, fused, kind)
    held, own = (getattr(m, "backbone", m).get_config() for m in (fused, model))
    sizes = {k: v for k, v in own.items() if isinstance(v, int)} | to
    assert {k: held[k] for k in sizes} == sizes


def test_sizes_by_the_names_of_layers():
    model = perturbed(functional())
    name = next(x.name for x in model.layers if hasattr(x, "units"))
    fused = fuse(model, to={name: 21})
    assert [x.units for x in fused.layers if hasattr(x, "units")] == [21, 8, 20]
    assert_same_function(model, fused, "functional")
    grow = DeepFusion(at_step=1, to={name: 48}, verbose=0)
    assert str(grow.operator) == f"self-fusion to {name}=48"
    model.compile("adam", loss())
    model.fit(*data_for("functional"), verbose=0, callbacks=[grow])
    assert model.get_layer(name).units == 48
    assert DeepFusion.from_config(grow.get_config()).operator.to == {name: 48}


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"to": {"intermediate_dim": 16}}, "intermediate_dim=16, and it is 16 in"),
        (
            {"to": {"hiden_dim": 16}},
            r"names \['hiden_dim'\], and the model has no .*hidden",
        ),
        (
            {"to": {"hidden_dim": 16}},
            "`to={'hidden_dim': 16}` would change the head size",
        ),
        ({"to": {}}, "`to` must be a dict"),
        ({"to": {"hidden_dim": 1.5}}, "`to` must be a dict"),
        (
            {"to": {"hidden_dim": 16}, "only": "heads"},
            "`to` says which widths grow, and",
        ),
        ({"to": {"hidden_dim": 16}, "factor": 3}, "and so does `factor`.*factor=3"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, pattern):
    with pytest.raises(FusionError, match=pattern):
        fuse(KINDS["gpt2"](), **options)


# In a loop of one's own.

LLAMA = """
wider = keras_fusion.FusionOperator(factor=1.5, only="feed_forward")
optimizer.build(model.trainable_variables)
loss_of = lambda tv, x, y: loss(y, model.stateless_call(tv, [], x)[0])
for number, (x, y) in enumerate(batches):
    if number == 4:
        keras_fusion.grow(model, wider, optimizer=optimizer)
    variables = model.trainable_variables, optimizer.variables
    tv, ov = ([v.value for v in group] for group in variables)
    new = optimizer.stateless_apply(ov, jax.grad(loss_of)(tv, x, y), tv)
    [v.assign(a) for v, a in zip(sum(variables, []), sum(new, []))]
"""


@pytest.mark.skipif(keras.config.backend() != "jax", reason="a loop of JAX")
def test_a_llama_grows_its_feed_forward_widths_in_few_lines(monkeypatch):
    import jax
    import keras_hub

    keras.utils.set_random_seed(0)
    sizes = {"num_layers": 2, "num_query_heads": 2, "num_key_value_heads": 1}
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=20, hidden_dim=8, intermediate_dim=16, **sizes
    )
    model = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    ids = data_for("functional")[0]
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    seen, optimizer, grow = [], keras.optimizers.Adam(0.01), keras_fusion.grow

    def watched(model, operator, **options):
        before = outputs(model, x)
        event = grow(model, operator, verbose=0, **options)
        np.testing.assert_allclose(outputs(model, x), before, atol=1e-5)
        slots = [np.asarray(v) for v in optimizer._momentums]
        seen.append((event, slots, float(loss()(ids, outputs(model, x)))))

    monkeypatch.setattr(keras_fusion, "grow", watched)
    names = {"jax": jax, "model": model, "optimizer": optimizer, "loss": loss()}
    names |= {"keras_fusion": keras_fusion, "batches": [(x, ids)] * 12}
    exec(LLAMA, names)
    ((event, slots, at_growth),) = seen
    assert event.step == 4 and event.function_change < 1e-5
    assert model.backbone.intermediate_dim == 24 and model.backbone.hidden_dim == 8
    assert slots and all(np.any(slot) for slot in slots)
    assert int(optimizer.iterations) == 12
    assert float(loss()(ids, outputs(model, x))) < at_growth


def similarity(encoder):
    """The cosine of two sentences: nothing that the blocks add to can grow."""
    sides = [keras.Input((6,), dtype="int32", name=name) for name in ("one", "other")]
    ones = keras.ops.ones_like
    features = [
        keras.ops.normalize(
            encoder({"token_ids": x, "segment_ids": 0 * x, "padding_mask": ones(x)})[
                "pooled_output"
            ]
        )
        for x in sides
    ]
    return keras.Model(sides, keras.ops.sum(features[0] * features[1], -1))


def test_widths_inside_of_layers_whose_features_must_stay():
    model = similarity(KINDS["bert"]().backbone)
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 20, (4, 6)) for _ in range(2)]
    before = outputs(model, x)
    grown = fuse(model, factor=2, only="feed_forward")
    assert grown.count_params() > model.count_params()
    np.testing.assert_allclose(outputs(grown, x), before, atol=1e-6)
    with pytest.raises(FusionError, match=r"None of the widths chosen.*'normalize"):
        fuse(model, factor=2, only="residual")
    with pytest.raises(FusionError, match=r"chosen no width.*stay: .*'normalize"):
        fuse(model, factor=2, only="nobody")
