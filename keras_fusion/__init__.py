"""keras_fusion: train a big Keras network for less, by growing it out of small ones."""

from keras_fusion import dynamics, layers, testing
from keras_fusion.annealing import AnnealBlockNorms
from keras_fusion.axes import Axis
from keras_fusion.backup import BackupAndRestore
from keras_fusion.callbacks import GrowModel
from keras_fusion.deep_fusion import DeepFusion
from keras_fusion.depth_operators import Chain, DepthStacking
from keras_fusion.errors import (
    FusionError,
    GrowthError,
    StructureError,
    UnregisteredLayerError,
)
from keras_fusion.events import GrowthEvent
from keras_fusion.fusion import fuse
from keras_fusion.graft import multi_worker_fit
from keras_fusion.growth_operators import (
    FusionOperator,
    GrowthOperator,
    known_operators,
    register_operator,
)
from keras_fusion.learning_rate import GrownSchedule
from keras_fusion.lemon import Lemon
from keras_fusion.operator import fuse_arrays
from keras_fusion.plotting import plot_dynamics, plot_fusion, plot_run
from keras_fusion.registry import Norm, register, registered
from keras_fusion.report import FusionReport, fusion_report
from keras_fusion.schedules import AtEpoch, AtStep, GrowthSchedule, Moment, OnPlateau
from keras_fusion.slots import Slot, register_optimizer
from keras_fusion.width_operators import (
    HyperCloning,
    Net2Net,
    StagedTraining,
    ZeroPadding,
)

__version__ = "0.1.0"

__all__ = [
    "AnnealBlockNorms",
    "AtEpoch",
    "AtStep",
    "Axis",
    "BackupAndRestore",
    "Chain",
    "DeepFusion",
    "DepthStacking",
    "FusionError",
    "FusionOperator",
    "FusionReport",
    "GrowModel",
    "GrownSchedule",
    "GrowthError",
    "GrowthEvent",
    "GrowthOperator",
    "GrowthSchedule",
    "HyperCloning",
    "Lemon",
    "Moment",
    "Net2Net",
    "Norm",
    "OnPlateau",
    "Slot",
    "StagedTraining",
    "StructureError",
    "UnregisteredLayerError",
    "ZeroPadding",
    "dynamics",
    "fuse",
    "fuse_arrays",
    "fusion_report",
    "known_operators",
    "layers",
    "multi_worker_fit",
    "plot_dynamics",
    "plot_fusion",
    "plot_run",
    "register",
    "register_operator",
    "register_optimizer",
    "registered",
    "testing",
]
