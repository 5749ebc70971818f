"""The graft: turns a live model and its optimizer into the grown ones during training."""

from keras_fusion.graft.live import graft
from keras_fusion.graft.optimizer import (
    check_optimizers,
    grown_optimizer,
    leaves,
    raw_iterations,
    read_state,
    schedule_of,
    steps,
)

__all__ = [
    "check_optimizers",
    "graft",
    "grown_optimizer",
    "leaves",
    "raw_iterations",
    "read_state",
    "schedule_of",
    "steps",
]
