"""Every transformer family of keras-hub: fused exactly.

`python -m experiments.coverage` runs the same families further and writes the table.
"""

import keras
import numpy as np
import pytest
from models import perturbed
from rule_samples import SAMPLES

from keras_fusion import fuse, registered
from keras_fusion.models import private, probe, samples, tree

families = pytest.importorskip("experiments.families")


def scaled(model, scale):
    """The model, with embeddings of another scale."""
    for variable in perturbed(model).trainable_variables:
        if "embedding" in variable.path:
            variable.assign(scale * variable)
    return model


def whole(family):
    """The names of a family's tasks, which have its backbone in them, or the backbone."""
    return families.names(family)[1:] or families.names(family)


@pytest.mark.parametrize("family", families.ALL)
def test_family(family):
    """Fused with itself, and with another whose features are 3 times larger.

    The other one is of another width where the family allows it; the norms are
    block-wise.
    """
    scale = 1 if family in families.PAIRS else 2
    for name in whole(family):
        model = families.model(family, name)
        other = families.model(family, name, scale, seed=1)
        parents = [scaled(model, 1.0), scaled(other, 3.0)]
        inputs = samples.accepted(model)
        before = probe.outputs(model, inputs)
        fused = fuse(model, factor=2, off_diagonal="paired", seed=0)
        assert probe.change(before, probe.outputs(fused, inputs)) < 1e-5, name
        assert fused.count_params() > 1.5 * model.count_params()
        fused = fuse(parents, norms="block")
        assert type(fused) is type(model)
        expected = probe.mean_outputs(parents, inputs)
        assert probe.change(expected, probe.outputs(fused, inputs)) < 1e-5, name
    keras.utils.clear_session()


def test_every_rule_is_in_a_family():
    seen = set()
    for family in families.ALL:
        with private.without_values():
            models = [families.model(family, name) for name in whole(family)]
        for model in models:
            for _, layer in tree.walk(model):
                seen |= {f"keras_hub>{cls.__name__}" for cls in type(layer).__mro__}
        keras.utils.clear_session()
    rules = {key for key in registered() if str(key).startswith("keras_hub>")}
    assert rules - seen - set(SAMPLES) == {"keras_hub>*"}


def test_a_tied_gemma_of_unequal_widths():
    """What multiplies the embedding depends on the width; each parent's is undone."""
    small, wide = (families.model("Gemma", "CausalLM", k, k) for k in (1, 2))
    for model in (small, wide):
        for variable in model.weights:
            if "decoder" in variable.path:
                variable.assign(keras.ops.zeros_like(variable))
        table = model.backbone.token_embedding.embeddings
        signs = np.sign(keras.ops.convert_to_numpy(table))
        # Of one size after the multiplication: then one norm is as good as two.
        table.assign(signs / np.sqrt(model.backbone.hidden_dim))
    inputs = samples.accepted(small)
    (mean,) = probe.mean_outputs([small, wide], inputs)
    (fused,) = probe.outputs(fuse([small, wide]), inputs)
    np.testing.assert_allclose(fused, mean, atol=1e-4 * np.max(np.abs(mean)))
