"""Pictures: the blocks of a fused model, a run with its growths, its dynamics."""

from keras_fusion.analysis.plotting.blocks import plot_fusion
from keras_fusion.analysis.plotting.dynamics import plot_dynamics
from keras_fusion.analysis.plotting.run import plot_run

__all__ = ["plot_dynamics", "plot_fusion", "plot_run"]
