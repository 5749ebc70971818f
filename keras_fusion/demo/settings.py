"""The models that the demo trains, and the split of its budget of FLOPs."""

import dataclasses

from keras_fusion.t5.model import Architecture


@dataclasses.dataclass(frozen=True)
class Settings:
    """The constants of a demo.

    Attributes:
        vocabulary_size: int. Token ids, sentinels included.
        sentinels: int. Sentinel ids.
        row_length: int. Tokens in a row before corruption.
        batch_size: int.
        hidden_dim: int. Of the fused model and of the twin, like the next two; the
            parents have half of each.
        intermediate_dim: int.
        num_heads: int.
        num_layers: int. Of the encoder, and of the decoder; the same in all models.
        head_size: int. The same in all models.
        twin_steps: int. Steps of the twin. Their FLOPs are the budget of both sides.
        parents_share: float. The share of the budget that goes to the two parents.
        parent_rate: float. Adam's learning rate for the parents, and for the small model
            alone. At 3e-3, after 50 steps of warm-up, one of two parents stayed at 10%
            accuracy (4.890 and 4.498 after 585 steps; as it is: 4.595 and 4.656).
        twin_rate: float. Its peak for the twin: the best of 1e-3, 2e-3, 3e-3 and 4e-3
            (final losses after 800 steps: 4.630, 4.522, 4.486 and 4.872, with another
            order of the batches).
        growth_factor: float. Multiplies the parents' rate at the growth.
        parent_warmup_steps: int. Steps of warm-up of the parents and the small model.
        warmup_steps: int. Steps of warm-up of the twin.
        rewarmup_steps: int. Steps of warm-up after the growth.
        evaluations: int. Evaluations per budget, at equal distances in FLOPs.
        validation_batches: int. Batches in each of them.
    """

    vocabulary_size: int = 1024
    sentinels: int = 32
    row_length: int = 96
    batch_size: int = 16
    hidden_dim: int = 192
    intermediate_dim: int = 512
    num_heads: int = 6
    num_layers: int = 2
    head_size: int = 32
    twin_steps: int = 700
    parents_share: float = 0.4
    parent_rate: float = 2e-3
    twin_rate: float = 3e-3
    growth_factor: float = 0.75
    parent_warmup_steps: int = 150
    warmup_steps: int = 50
    rewarmup_steps: int = 30
    evaluations: int = 16
    validation_batches: int = 20

    def architecture(self, vocabulary_size: int) -> Architecture:
        """The architecture of the fused model and of the twin."""
        return Architecture(
            hidden_dim=self.hidden_dim,
            intermediate_dim=self.intermediate_dim,
            num_heads=self.num_heads,
            num_layers=self.num_layers,
            head_size=self.head_size,
            vocabulary_size=vocabulary_size,
        )


FULL = Settings()

# Everything once, in less than a minute; the models hardly learn.
SMOKE = Settings(
    vocabulary_size=512,
    row_length=48,
    batch_size=4,
    hidden_dim=32,
    intermediate_dim=64,
    num_heads=4,
    num_layers=1,
    head_size=8,
    twin_steps=30,
    parent_warmup_steps=4,
    warmup_steps=4,
    rewarmup_steps=4,
    evaluations=3,
    validation_batches=2,
)
