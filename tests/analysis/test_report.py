"""The report of a fusion: how far from its parents, and from which layer on."""

import numpy as np
import pytest
from models import data_for, loss
from transformers import transformer

from keras_fusion import FusionError, fuse, fusion_report


def test_report():
    parents = [transformer("encoder", width, width) for width in (8, 12)]
    x, y = data_for("functional", 8)
    exact = fusion_report(parents, fuse(parents, norms="block"), x, y, loss())
    assert exact.difference.largest < 1e-5 and exact.first_departure() is None
    assert exact.fused_loss == pytest.approx(exact.ensemble_loss, rel=1e-5)
    assert exact.ensemble_loss < np.mean(exact.parent_losses)  # Jensen
    assert exact.difference.argmax_agreement == 1.0
    joint = fusion_report(parents, fuse(parents, norms="joint"), x)
    first = joint.first_departure()
    assert first.kind == "LayerNormalization" and joint.fused_loss is None
    assert [d.difference for d in joint.layers if d.kind == "Embedding"] == [0.0]
    text = str(joint)
    assert f"first departs at {first.address!r}" in text and "same argmax" in text
    assert joint.plot().get_ylabel() == "relative difference"
    own = fusion_report(parents[0], fuse(parents[0], factor=2), x)
    assert own.first_departure() is None
    with pytest.raises(FusionError, match="targets=given, loss=None"):
        fusion_report(parents, fuse(parents), x, y)
