"""Growth as dynamics: what growing in mid-training does to the training."""

from keras_fusion.dynamics.bracket import Bracket, Field, Phases
from keras_fusion.dynamics.derivatives import Derivatives, Result

__all__ = ["Bracket", "Derivatives", "Field", "Phases", "Result"]
