"""Norms calibrated on a batch, where one joint statistic stands for unequal parents."""

import numpy as np
import pytest
from keras import layers
from models import data_for, functional, mean_of, numpy, outputs, perturbed, t5
from transformers import ids_for, transformer

from keras_fusion import FusionError, fuse


def mismatched(width, seed, scale, norm):
    """A pre-norm parent whose residual stream is `scale` times as large."""
    model = transformer("decoder", width, seed, norm)
    rng = np.random.default_rng(seed)
    table = model.layers[1].embeddings
    table.assign(scale * rng.standard_normal(table.shape).astype("float32"))
    return model


@pytest.mark.core
@pytest.mark.parametrize(
    ("norm", "gain"), [("RMSNormalization", 5), ("LayerNormalization", 5)]
)
def test_calibration_of_unequal_scales(norm, gain):
    parents = [
        mismatched(256, seed, scale, getattr(layers, norm))
        for seed, scale in enumerate((1.0, 3.0))
    ]
    measured, x = ids_for("decoder", 16), ids_for("decoder", 32)[16:]
    expected = mean_of(parents, x)

    def error(**options):
        y = outputs(fuse(parents, **options), x)
        return np.linalg.norm(y - expected) / np.linalg.norm(expected)

    assert error(norms="joint") > gain * error(norms="calibrated", probe=measured)


def test_calibration_of_t5():
    parents = [perturbed(t5(True, 32, seed), seed) for seed in (1, 2)]
    table = parents[1].backbone.token_embedding.embeddings
    table.assign(3 * numpy(table))
    x, _ = data_for("t5", 16)
    changes = []
    for norms in ("joint", "calibrated"):
        fused = fuse(parents, norms=norms, probe=x)
        expected = mean_of(parents, x)
        changes.append(np.linalg.norm(outputs(fused, x) - expected))
    assert changes[1] < changes[0] / 2


def test_calibration_needs_a_batch():
    with pytest.raises(FusionError, match="probe=None"):
        fuse([functional(), functional()], norms="calibrated")
