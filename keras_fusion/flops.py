"""Counts the floating-point operations of a training step from its graph."""

from keras_fusion.models.flops import training_step_flops

__all__ = ["training_step_flops"]
