"""The errors of keras_fusion: each names the argument, the value and the fix."""


class FusionError(ValueError):
    """A model, partner or option that cannot be fused; nothing was changed."""


class UnregisteredLayerError(FusionError):
    """A layer with weights of its own that no rule describes."""


class StructureError(FusionError):
    """Parents whose layers do not correspond one to one."""


class GrowthError(RuntimeError):
    """A growth that failed in mid-training; the live model trains on as it was."""
