"""The graft: a live model, and its optimizer, become the fused ones in mid-training.

This package is the only place that touches Keras's private state.
"""

from keras_fusion.graft.deferral import adopt_layouts, give_values, without_values
from keras_fusion.graft.live import graft, keep_names, scope, start_at_epoch, sync
from keras_fusion.graft.loading import load_safely
from keras_fusion.graft.multi_worker import multi_worker_fit
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
    "adopt_layouts",
    "check_optimizers",
    "give_values",
    "graft",
    "grown_optimizer",
    "keep_names",
    "leaves",
    "load_safely",
    "multi_worker_fit",
    "raw_iterations",
    "read_state",
    "schedule_of",
    "scope",
    "start_at_epoch",
    "steps",
    "sync",
    "without_values",
]
