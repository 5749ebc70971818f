"""Growth as dynamics: what growing in mid-training does to the training."""

from keras_fusion.blocks import Blocks
from keras_fusion.dynamics.bracket import Bracket, Field, Phases
from keras_fusion.dynamics.derivatives import Derivatives, Result
from keras_fusion.dynamics.measures import (
    activation_jump,
    activation_rms,
    asymmetry,
    block_alignment,
)
from keras_fusion.dynamics.monitor import DynamicsMonitor, Record
from keras_fusion.dynamics.planner import LossCurve, Proposal, WhenItPays, propose
from keras_fusion.dynamics.rate import BracketRate, rate_factor

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
