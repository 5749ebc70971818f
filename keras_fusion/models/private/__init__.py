"""All code that uses Keras's private state, except the graft."""

from keras_fusion.models.private.attachments import attach, attached
from keras_fusion.models.private.attributes import is_optional
from keras_fusion.models.private.configs import graph_config
from keras_fusion.models.private.deferral import (
    adopt_shardings,
    give_values,
    initial_value,
    without_values,
)
from keras_fusion.models.private.fit_data import fit_data
from keras_fusion.models.private.loading import load_safely, parameters_of
from keras_fusion.models.private.multi_worker import multi_worker_fit
from keras_fusion.models.private.names import keep_names
from keras_fusion.models.private.seeds import seed_states
from keras_fusion.models.private.trainer import (
    forget_compiled_by_others,
    renew,
    scope,
    start_at_epoch,
    sync,
)

__all__ = [
    "adopt_shardings",
    "attach",
    "attached",
    "fit_data",
    "forget_compiled_by_others",
    "give_values",
    "graph_config",
    "initial_value",
    "is_optional",
    "keep_names",
    "load_safely",
    "multi_worker_fit",
    "parameters_of",
    "renew",
    "scope",
    "seed_states",
    "start_at_epoch",
    "sync",
    "without_values",
]
