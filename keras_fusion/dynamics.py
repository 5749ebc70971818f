"""Growth as dynamics: the effect of growing a model during training."""

from keras_fusion.analysis.dynamics.bracket import Bracket, Field, Phases
from keras_fusion.analysis.dynamics.derivatives import Derivatives, Result
from keras_fusion.analysis.dynamics.measures import (
    activation_jump,
    activation_rms,
    asymmetry,
    block_alignment,
)
from keras_fusion.analysis.dynamics.monitor import DynamicsMonitor, Record
from keras_fusion.analysis.dynamics.planner import (
    LossCurve,
    Proposal,
    WhenItPays,
    propose,
)
from keras_fusion.analysis.dynamics.rate import BracketRate, rate_factor
from keras_fusion.layout.parent_blocks import Blocks

__all__ = [
    "Blocks",
    "Bracket",
    "BracketRate",
    "Derivatives",
    "DynamicsMonitor",
    "Field",
    "LossCurve",
    "Phases",
    "Proposal",
    "Record",
    "Result",
    "WhenItPays",
    "activation_jump",
    "activation_rms",
    "asymmetry",
    "block_alignment",
    "propose",
    "rate_factor",
]
