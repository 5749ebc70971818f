"""Pictures: what they show is read back from the figures."""

import keras
import numpy as np
import pytest
from keras import layers
from models import data_for, functional, loss, t5

import keras_fusion
from keras_fusion import (
    DeepFusion,
    FusionError,
    GrowthEvent,
    fuse,
    plot_fusion,
    plot_run,
)

# Of blocks.py, which must not change without a look at the pictures.
BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)


def net(width=8, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(width), layers.Dense(width), layers.Dense(3)]
    )


def fitted(*callbacks, at=3, epochs=4):
    model = functional()
    model.compile("adam", loss())
    x, y = data_for("functional")
    grow = DeepFusion(at_step=at, seed=0, verbose=0)
    history = model.fit(
        x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=[grow, *callbacks]
    )
    return model, grow, history


def image(axes):
    return np.asarray(axes.images[0].get_array())


def hue_is(pixels, rgb):
    """Whether all pixels are a colour, or lighter shades of it."""
    depth = 1 - pixels.reshape(-1, 3)
    full = 1 - np.array(rgb) / 255
    strength = depth.max(axis=1, keepdims=True) / full.max()
    return np.allclose(depth, strength * full, atol=1e-6) and strength.min() > 0


def test_blocks_of_distinct_parents(tmp_path):
    fused = fuse([net(8, 0), net(4, 1)])
    path = tmp_path / "blocks.png"
    first, hidden, readout = plot_fusion(fused, path=str(path)).axes
    assert path.stat().st_size > 1000
    assert image(first).shape == (4, 12, 3)
    assert hue_is(image(first)[:, :8], BLUE) and hue_is(image(first)[:, 8:], ORANGE)
    assert hue_is(image(hidden)[:8, :8], BLUE) and hue_is(image(hidden)[8:, 8:], ORANGE)
    assert np.all(image(hidden)[:8, 8:] == 1), "Zero off-diagonals are white."
    assert hue_is(image(readout)[:8], BLUE) and hue_is(image(readout)[8:], ORANGE)
    assert "readout, each over 2" in readout.get_title()
    assert [t.get_text() for t in hidden.texts] == ["1", "2"]


def test_noise_is_seen_off_the_diagonal():
    _, hidden, _ = plot_fusion(fuse(net(), factor=2, off_diagonal="paired")).axes
    off_diagonal = image(hidden)[:8, 8:]
    assert off_diagonal.max() < 1
    assert np.allclose(off_diagonal, off_diagonal[..., :1]), "It is grey."


def test_new_capacity_has_its_own_colour():
    figure = plot_fusion(fuse(net(), factor=1.5))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["parent 1", "new units"]
    assert hue_is(image(figure.axes[0])[:, 8:], (0x00, 0x9E, 0x73))


def test_heads_of_attention_go_with_their_outputs():
    figure = plot_fusion(fuse([functional(8, 0), functional(8, 1)]), kernels="query/")
    (axes,) = figure.axes  # and not its bias
    assert image(axes).shape == (16, 16, 3)
    assert hue_is(image(axes)[:8, :8], BLUE)


def test_repeated_blocks_are_drawn_once_and_titles_differ():
    figure = plot_fusion(fuse(t5(), factor=2), most=5)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(set(titles)) == 5
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    for _ in range(6):
        model.add(layers.Dense(4))
    model.add(layers.Dense(1, name="head"))
    _, repeated, last = plot_fusion(fuse(model, factor=2)).axes
    assert repeated.get_title().startswith(model.layers[1].name)
    assert last.get_title().startswith("head/kernel")


def test_a_large_kernel_is_thinned_out():
    fused = fuse(net(150), factor=2)
    assert image(plot_fusion(fused).axes[1]).shape == (96, 96, 3)


def test_the_model_grown_in_fit_is_drawn():
    model, grow, _ = fitted()
    assert [p.shape for p in grow.blocks.places] == [v.shape for v in model.weights]
    assert len(plot_fusion(model, most=6).axes) == 6


def test_block_norms_have_a_weight_that_no_parent_has():
    fused = fuse([functional(8, 0), functional(8, 1)], norms="block")
    assert len(plot_fusion(fused).axes) > 3


def test_models_without_blocks_are_refused(tmp_path):
    model = net()
    with pytest.raises(FusionError, match=f"'{model.name}' was not fused in this"):
        plot_fusion(model)
    fused = fuse(model, factor=2)
    with pytest.raises(FusionError, match="matches kernels='nothing'"):
        plot_fusion(fused, kernels="nothing")
    fused.add(layers.Dense(2))
    with pytest.raises(FusionError, match="other shapes than right after"):
        plot_fusion(fused)


def test_blocks_are_forgotten_with_their_model():
    import gc
    import weakref

    parent = net()
    fused = fuse(parent, factor=2)
    held = weakref.ref(fused)
    del fused
    gc.collect()
    assert held() is None


def growth_lines(axes):
    return [
        float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 2
    ]


def test_a_run_with_its_parameters_and_flops(tmp_path):
    _, grow, history = fitted(at=6)
    path = tmp_path / "run.png"
    values, sizes, flops = plot_run(
        history, grow.events, step_flops=[10.0, 30.0], path=str(path)
    ).axes
    assert path.stat().st_size > 1000
    assert growth_lines(values) == [1.5]  # 6 steps of 4 an epoch
    (event,) = grow.events
    assert sizes.patches[-1].get_data().values.tolist() == [
        event.params_before,
        event.params_after,
    ]
    spent = flops.lines[0].get_ydata().tolist()
    assert spent == [0, 6 * 10, 6 * 10 + 10 * 30]
    assert "step 6" in values.texts[0].get_text()


def test_a_run_without_growth_has_one_panel():
    (axes,) = plot_run({"loss": [3.0, 2.0]}, []).axes
    assert axes.get_ylabel() == "loss"


def test_a_run_of_which_only_the_epochs_are_known():
    event = GrowthEvent(7, 2, 10, 40, 0.1, 1e-7, 1e-7, 1.0, "self-fusion x2")
    figure = plot_run({"loss": [3.0, 2.0, 1.0]}, [event])
    assert growth_lines(figure.axes[0]) == [2]
    with pytest.raises(ValueError, match="2 number.s. for 1 growth.s., None steps"):
        plot_run({"loss": [3.0, 2.0, 1.0]}, [event], step_flops=[1, 2])


def test_a_run_without_such_values_is_refused():
    with pytest.raises(ValueError, match="names nothing.*it has .'loss'."):
        plot_run({"loss": [1.0]}, [], values=("accuracy",))


@pytest.mark.core
def test_pictures_on_every_backend():
    fused = keras_fusion.fuse([net(8, 0), net(8, 1)])
    assert len(plot_fusion(fused).axes) == 3
