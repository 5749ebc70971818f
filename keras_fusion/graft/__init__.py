"""The graft: turns a live model and its optimizer into the grown ones during training."""

from keras_fusion.graft.live import grafted, with_optimizer
from keras_fusion.graft.metrics import check as check_metrics
from keras_fusion.graft.norms import shapes_with_stock_norms, stock_norms
from keras_fusion.graft.optimizer import (
    check_optimizers,
    grown_optimizer,
    is_divided,
    leaves,
    optimizer_of,
    raw_iterations,
    read_state,
    steps,
)
from keras_fusion.graft.sizes import bytes_of, device_bytes, optimizer_bytes
from keras_fusion.graft.twins import options, schedule_of

__all__ = [
    "bytes_of",
    "check_metrics",
    "check_optimizers",
    "device_bytes",
    "grafted",
    "grown_optimizer",
    "is_divided",
    "leaves",
    "optimizer_bytes",
    "optimizer_of",
    "options",
    "raw_iterations",
    "read_state",
    "schedule_of",
    "shapes_with_stock_norms",
    "steps",
    "stock_norms",
    "with_optimizer",
]
