"""Keras's `fit` under TensorFlow's `MultiWorkerMirroredStrategy`.

Keras 3 (seen in 3.15.1) fails there in two places, both in
`keras/src/backend/tensorflow/trainer.py`:

- `TensorFlowTrainer._maybe_symbolic_build` passes the whole structure of the first batch
  to `strategy.reduce`, which with several workers treats it as one tensor: "Attempt to
  convert a value (PerReplica: ...) with an unsupported type".
- `reduce_per_replica` averages the logs with `strategy.reduce("MEAN", v, axis=0)`, and
  logs are scalars: "Invalid reduction dimension 0 for input with 0 dimensions".

Everything else (variables, gradients, metrics, data sharding) works with several workers.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_fusion.errors import FusionError
from keras_fusion.models.private.patches import Patch, Replacements


@contextlib.contextmanager
def multi_worker_fit() -> Iterator[None]:
    """Makes `fit` and `evaluate` work under TensorFlow's `MultiWorkerMirroredStrategy`.

    Keras 3 itself fails there before the first step. In this scope it works, with growth
    or without. All workers run the same script, and must request the same growths. The
    logs of a batch are the worker's own; those of an epoch cover all workers. Models under
    other strategies are trained as usual.

    Returns:
        A context manager, for a `with` statement around `fit` and `evaluate`.

    Raises:
        FusionError: if the backend is not TensorFlow, or this version of Keras is not
            supported.

    Example:

    ```python
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # TF_CONFIG names the workers
    with strategy.scope():
        model = build_and_compile()
    ```

    >>> import keras, keras_fusion, numpy as np
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    ... )
    >>> model.compile("adam", "mse")
    >>> grow = keras_fusion.DeepFusion(at_step=1, verbose=0)
    >>> with keras_fusion.multi_worker_fit():
    ...     _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0, batch_size=4,
    ...                   callbacks=[grow])
    >>> model.layers[0].units
    16
    """
    _trainer()  # Where this does not work it says so.
    with _PATCH.applied():
        yield


def _replacements() -> Replacements:
    """What makes the trainer of TensorFlow work with several workers."""
    trainer = _trainer()
    cls = trainer.TensorFlowTrainer
    build, reduce = cls._maybe_symbolic_build, trainer.reduce_per_replica

    def build_locally(model: Any, iterator: Any = None, data_batch: Any = None) -> Any:
        """Builds as Keras does, on the part of a batch of this worker's first replica."""
        strategy = model.distribute_strategy
        if iterator is None or not _has_workers(strategy):
            return build(model, iterator, data_batch)
        _, _, batches = next(iter(iterator))
        with strategy.scope():
            model._symbolic_build(
                data_batch=keras.tree.map_structure(
                    lambda x: strategy.experimental_local_results(x)[0], next(batches)
                )
            )

    def reduce_locally(values: Any, strategy: Any, reduction: str) -> Any:
        """Reduces as Keras does, with means over the replicas of this worker."""
        if not _has_workers(strategy) or reduction not in ("auto", "mean"):
            return reduce(values, strategy, reduction)
        return keras.tree.map_structure(
            lambda x: (
                sum(strategy.experimental_local_results(x))
                / len(strategy.experimental_local_results(x))
            ),
            values,
        )

    return [
        (cls, "_maybe_symbolic_build", build_locally),
        (trainer, "reduce_per_replica", reduce_locally),
    ]


_PATCH = Patch(_replacements)


def _has_workers(strategy: Any) -> bool:
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _trainer() -> Any:
    """Keras's module, if it has the functions that are replaced here."""
    if keras.config.backend() != "tensorflow":
        raise FusionError(
            "`multi_worker_fit` is for the TensorFlow backend. Received: "
            f"{keras.config.backend()!r}. On JAX use keras.distribution, which works "
            "over several processes."
        )
    from keras.src.backend.tensorflow import trainer

    known = hasattr(trainer, "reduce_per_replica") and hasattr(
        getattr(trainer, "TensorFlowTrainer", None), "_maybe_symbolic_build"
    )
    if not known:
        raise FusionError(
            f"`multi_worker_fit` does not support Keras {keras.__version__}, whose "
            "TensorFlow trainer is different. Try `fit` without it, or use JAX and "
            "keras.distribution."
        )
    return trainer
