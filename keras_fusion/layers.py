"""Norms with one statistic per parent, which make fusion of distinct parents exact."""

from keras_fusion.models.block_norms import (
    BlockLayerNormalization,
    BlockRMSNormalization,
)

__all__ = ["BlockLayerNormalization", "BlockRMSNormalization"]
