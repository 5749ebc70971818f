"""Distinct parents trained on real text: in `fit`, a fusion begins at their ensemble."""

import keras
import numpy as np
import pytest
from fitting import Watch
from models import loss, numpy, outputs
from repository import ROOT

from keras_fusion import DeepFusion

pytestmark = pytest.mark.core

LENGTH, WIDTH, BATCH, STEPS = 16, 16, 16, 40
TEXT = b"".join(page.read_bytes() for page in sorted((ROOT / "docs").glob("*.md")))
IDS = np.frombuffer(TEXT, np.uint8) % 128
# Without padding, of which the masks of BERT and T5 would be.
ROWS = np.maximum(IDS[: len(IDS) // LENGTH * LENGTH], 1).reshape(-1, LENGTH)
SHARED = {"vocabulary_size": 128, "hidden_dim": WIDTH, "intermediate_dim": 2 * WIDTH}


def causal(family, heads, **options):
    import keras_hub

    hub = keras_hub.models
    backbone = getattr(hub, f"{family}Backbone")(
        num_layers=2, **heads, **SHARED, **options
    )
    return getattr(hub, f"{family}CausalLM")(backbone, preprocessor=None)


def gpt2():
    return causal("GPT2", {"num_heads": 2}, dropout=0.0, max_sequence_length=LENGTH)


def llama():
    return causal("Llama", {"num_query_heads": 2, "num_key_value_heads": 2})


def bert():
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        num_layers=2, num_heads=2, dropout=0.0, max_sequence_length=LENGTH, **SHARED
    )
    return keras_hub.models.BertMaskedLM(backbone, preprocessor=None)


def t5():
    import keras_hub

    backbone = keras_hub.models.T5Backbone(
        num_layers=2, num_heads=2, key_value_dim=8, dropout=0.0, **SHARED
    )
    return keras_hub.models.T5Seq2SeqLM(backbone, preprocessor=None)


def data_for(make, rows):
    """What a model of a kind reads, and what it is to say."""
    ones = np.ones(rows.shape, "int32")
    if make is t5:  # The second half of a row after the first one.
        first, second = np.split(rows, 2, axis=1)
        begun = np.concatenate([ones[:, :1], second[:, :-1]], axis=1)
        masks = np.split(ones, 2, axis=1)
        x = {"encoder_token_ids": first, "encoder_padding_mask": masks[0]}
        x |= {"decoder_token_ids": begun, "decoder_padding_mask": masks[1]}
        return x, second
    if make is bert:
        places = np.tile(np.arange(2, LENGTH, 5), (len(rows), 1))
        hidden = rows.copy()
        hidden[:, places[0]] = 127
        x = {"token_ids": hidden, "padding_mask": ones, "segment_ids": 0 * ones}
        return x | {"mask_positions": places}, rows[:, places[0]]
    x = {"token_ids": rows[:, :-1], "padding_mask": ones[:, :-1]}
    return x, rows[:, 1:]


def train(model, make, rows, *callbacks):
    x, y = data_for(make, rows)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)


def mean_loss(logits, y):
    """Nats per token."""
    return float(numpy(loss()(y, logits)))


@pytest.mark.parametrize("make", [t5, llama, gpt2, bert])
def test_distinct_parents_begin_at_the_loss_of_their_ensemble(make):
    parents = []
    for seed in range(2):
        keras.utils.set_random_seed(seed)
        model = make()
        model.compile(keras.optimizers.Adam(0.01), loss())
        parents.append(model)
    live, partner = parents
    held_out, rows = ROWS[:64], ROWS[64:]
    x, y = data_for(make, held_out)
    fresh = mean_loss(outputs(live, x), y)
    train(partner, make, rows[BATCH * STEPS : 2 * BATCH * STEPS])
    before, after = Watch(STEPS, x), Watch(STEPS, x)
    grow = DeepFusion(at_step=STEPS, partners=[partner], verbose=0)
    train(live, make, rows[: BATCH * STEPS], before, grow, after)
    ensemble = (before.outputs + outputs(partner, x)) / 2
    assert grow.events[0].params_after > grow.events[0].params_before
    assert mean_loss(before.outputs, y) < fresh - 0.5
    begun = mean_loss(after.outputs, y)
    assert begun == pytest.approx(mean_loss(ensemble, y), abs=1e-4)
