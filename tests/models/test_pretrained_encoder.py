"""A real pre-trained encoder, all-MiniLM-L6-v2: grown, saved and read, it says the same."""

import keras
import numpy as np
import pytest
from models import numpy

from experiments.sentence_similarity import encoder, preset
from keras_fusion import FusionError, fuse

SENTENCES = ("A man plays a guitar.", "She reads.", "Growing a network pays sometimes.")


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """The backbone, and tokens for it."""
    keras_hub = pytest.importorskip("keras_hub")
    folder = preset(tmp_path_factory.mktemp("minilm"))
    tokenizer = keras_hub.models.BertTokenizer.from_preset(str(folder))
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        tokenizer, sequence_length=16
    )
    tokens = preprocessor(np.array(SENTENCES))
    return encoder(folder), {k: numpy(v).astype("int32") for k, v in tokens.items()}


def embeddings(model, tokens):
    """Each sentence's mean features, of unit length, for each 384 features."""
    states = numpy(model(tokens)["sequence_output"])
    mask = tokens["padding_mask"][..., None]
    blocks = [states[..., i : i + 384] for i in range(0, states.shape[-1] - 383, 384)]
    means = [(x * mask).sum(1) for x in blocks]
    return np.stack([x / np.linalg.norm(x, axis=-1, keepdims=True) for x in means])


@pytest.mark.parametrize("options", [{"factor": 2}, {"factor": 1.5, "norms": "block"}])
def test_a_grown_encoder_has_the_same_embeddings(minilm, options, tmp_path):
    small, tokens = minilm
    expected = embeddings(small, tokens)
    grown = fuse(small, **options)
    assert grown.count_params() > 1.5 * small.count_params()
    grown.save(tmp_path / "grown.keras")
    for model in (grown, keras.models.load_model(tmp_path / "grown.keras")):
        found = embeddings(model, tokens)
        np.testing.assert_allclose(found, np.repeat(expected, len(found), 0), atol=1e-5)


def test_mean_features_keep_their_width_and_the_heads(minilm):
    small, tokens = minilm
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in tokens}
    pooled = keras.ops.mean(small(inputs)["sequence_output"], axis=1)
    model = keras.Model(inputs, pooled)
    with pytest.raises(FusionError, match=r"Grow the feed-forward widths alone"):
        fuse(model, factor=2)
    grown = fuse(model, factor=2, only="feed_forward")
    assert grown.count_params() > model.count_params()
    expected = numpy(model(tokens))
    np.testing.assert_allclose(numpy(grown(tokens)), expected, atol=1e-5)
