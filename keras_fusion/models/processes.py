"""Runs of several processes: which one is the chief, and a seed that all agree on."""

from typing import Any

import keras
import numpy as np


def is_chief() -> bool:
    """Whether this process is the chief, which logs and writes files for all.

    With TensorFlow's workers, call it in the scope of their strategy.
    """
    if keras.config.backend() == "jax":
        import jax

        return jax.process_index() == 0
    workers = _workers()
    if workers is None:
        return True
    resolver = workers.cluster_resolver
    return resolver.task_type == "chief" or (
        resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs
    )


def is_alone() -> bool:
    """Whether no other process trains the model; to be called like `is_chief`."""
    if keras.config.backend() == "jax":
        import jax

        return jax.process_count() == 1
    return _workers() is None


def drawn_seed() -> int:
    """Draws a seed from the generator that `keras.utils.set_random_seed` governs.

    Returns:
        int below 2**31: the first process's, in all processes.
    """
    number = int(np.random.randint(2**31))
    if keras.config.backend() == "jax":
        import jax
        from jax.experimental import multihost_utils

        if jax.process_count() > 1:
            number = multihost_utils.broadcast_one_to_all(np.int32(number))
    elif (workers := _workers()) is not None:
        import tensorflow as tf

        def part() -> Any:
            first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
            return tf.constant(number, tf.int64) * tf.cast(first, tf.int64)

        number = workers.reduce("SUM", workers.run(part), axis=None)
    return int(number)


def _workers() -> Any:
    """The strategy of several TensorFlow workers if it is in scope, or `None`."""
    if keras.config.backend() != "tensorflow":
        return None
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    kind = tf.distribute.MultiWorkerMirroredStrategy
    return strategy if isinstance(strategy, kind) else None
