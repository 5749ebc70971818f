"""All code that uses Keras's private state, except the graft."""

from keras_fusion.models.private.attachments import attach, attached
from keras_fusion.models.private.attributes import is_optional
from keras_fusion.models.private.checkpoints import forget
from keras_fusion.models.private.configs import graph_config
from keras_fusion.models.private.deferral import (
    Initial,
    adopt_shardings,
    give_values,
    without_values,
)
from keras_fusion.models.private.exchange import (
    add_variable,
    remove_variable,
    track_again,
    use_class,
)
from keras_fusion.models.private.fit_data import fit_data, fit_validates
from keras_fusion.models.private.loading import (
    before_loading,
    find_under_old_name,
    load_safely,
    loads_by_itself,
    parameters_of,
)
from keras_fusion.models.private.marks import mark
from keras_fusion.models.private.multi_worker import multi_worker_fit
from keras_fusion.models.private.names import keep_names
from keras_fusion.models.private.precision import coarse_dtype, in_float32
from keras_fusion.models.private.seeds import seed_states
from keras_fusion.models.private.trainer import (
    callbacks_of_fit,
    compile_again,
    forget_compiled,
    has_any,
    identity,
    layers_of,
    others,
    parts_of,
    scope,
    start_at_epoch,
    sync,
)
from keras_fusion.models.private.updates import replace_update, update_of

__all__ = [
    "add_variable",
    "adopt_shardings",
    "attach",
    "attached",
    "before_loading",
    "callbacks_of_fit",
    "coarse_dtype",
    "compile_again",
    "find_under_old_name",
    "fit_data",
    "fit_validates",
    "forget_compiled",
    "forget",
    "give_values",
    "graph_config",
    "has_any",
    "identity",
    "in_float32",
    "Initial",
    "is_optional",
    "keep_names",
    "layers_of",
    "load_safely",
    "loads_by_itself",
    "mark",
    "multi_worker_fit",
    "others",
    "parameters_of",
    "parts_of",
    "remove_variable",
    "replace_update",
    "scope",
    "seed_states",
    "start_at_epoch",
    "sync",
    "track_again",
    "update_of",
    "use_class",
    "without_values",
]
