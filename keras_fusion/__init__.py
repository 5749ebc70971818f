"""keras_fusion: train a big Keras network for less, by growing it out of small ones."""

from keras_fusion import dynamics, flops, layers, testing
from keras_fusion.analysis.growth_advice import Course, ExistingParent, GrowthAdvice
from keras_fusion.analysis.growth_plan import plan_growth
from keras_fusion.analysis.plotting import plot_dynamics, plot_fusion, plot_run
from keras_fusion.analysis.report import FusionReport, fusion_report
from keras_fusion.analysis.scaling_law import ScalingLaw
from keras_fusion.errors import (
    FusionError,
    GrowthError,
    StructureError,
    UnregisteredLayerError,
)
from keras_fusion.layout.axes import Axis
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models.names import public_names as __dir__  # noqa: F401
from keras_fusion.models.private import multi_worker_fit
from keras_fusion.models.rules import Norm, register, registered
from keras_fusion.operators.base import (
    GrowthOperator,
    known_operators,
    register_operator,
)
from keras_fusion.operators.chain import Chain
from keras_fusion.operators.experts import ExpertGrowth
from keras_fusion.operators.fusion import FusionOperator, fuse
from keras_fusion.operators.hypercloning import HyperCloning
from keras_fusion.operators.lemon import Lemon
from keras_fusion.operators.net2net import Net2Net
from keras_fusion.operators.new_features import NewFeatures
from keras_fusion.operators.plan import Plan, Plans, lay_out
from keras_fusion.operators.stacking import DepthStacking
from keras_fusion.operators.staged import StagedTraining
from keras_fusion.operators.vocabulary import ClassGrowth, VocabularyGrowth
from keras_fusion.operators.zero_padding import ZeroPadding
from keras_fusion.training import recipes
from keras_fusion.training.anneal import AnnealBlockNorms
from keras_fusion.training.backup import BackupAndRestore
from keras_fusion.training.deep_fusion import DeepFusion
from keras_fusion.training.event import GrowthEvent
from keras_fusion.training.grow import grow
from keras_fusion.training.grow_model import GrowModel
from keras_fusion.training.learning_rate import GrownSchedule
from keras_fusion.training.preview import Preview, preview
from keras_fusion.training.schedules import (
    AfterSteps,
    AtEpoch,
    AtStep,
    GrowthSchedule,
    Moment,
    OnPlateau,
)
from keras_fusion.values.fillers import Filler
from keras_fusion.values.fuse import fuse_arrays
from keras_fusion.values.slots import Slot, register_optimizer

__version__ = "0.2.0"

__all__ = [
    "AfterSteps",
    "AnnealBlockNorms",
    "AtEpoch",
    "AtStep",
    "Axis",
    "BackupAndRestore",
    "Chain",
    "ClassGrowth",
    "Course",
    "DeepFusion",
    "DepthStacking",
    "ExistingParent",
    "ExpertGrowth",
    "Filler",
    "FusionError",
    "FusionOperator",
    "FusionReport",
    "GrowModel",
    "GrownSchedule",
    "GrowthAdvice",
    "GrowthError",
    "GrowthEvent",
    "GrowthOperator",
    "GrowthSchedule",
    "HyperCloning",
    "Lemon",
    "Moment",
    "Net2Net",
    "NewFeatures",
    "Norm",
    "OnPlateau",
    "Plan",
    "Plans",
    "Preview",
    "ScalingLaw",
    "Slot",
    "StagedTraining",
    "StructureError",
    "UnregisteredLayerError",
    "VariableLayout",
    "VocabularyGrowth",
    "ZeroPadding",
    "dynamics",
    "flops",
    "fuse",
    "fuse_arrays",
    "fusion_report",
    "grow",
    "known_operators",
    "lay_out",
    "layers",
    "multi_worker_fit",
    "plan_growth",
    "plot_dynamics",
    "plot_fusion",
    "plot_run",
    "preview",
    "recipes",
    "register",
    "register_operator",
    "register_optimizer",
    "registered",
    "testing",
]
