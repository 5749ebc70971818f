"""Where a model is trained: one device, all of a machine's, or a TPU's."""

import contextlib

import keras

STRATEGIES = ("none", "mirrored", "tpu")


def scope(name: str) -> contextlib.AbstractContextManager:
    """The context in which models are to be built and trained.

    On JAX, "mirrored" and "tpu" are both data parallelism over all devices.

    Args:
        name: one of `STRATEGIES`.

    Returns:
        A context manager.

    Raises:
        ValueError: if the name is none of them, or the backend cannot do it.
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"`strategy` must be one of {STRATEGIES}. Received: strategy={name!r}."
        )
    backend = keras.config.backend()
    if name == "none":
        return contextlib.nullcontext()
    if backend == "jax":
        # Each host brings its own part of a batch, see `host`.
        return keras.distribution.DataParallel(auto_shard_dataset=False).scope()
    if backend == "tensorflow":
        return _of_tensorflow(name).scope()
    raise ValueError(
        f"strategy={name!r} works on the TensorFlow and JAX backends. Received: the "
        f"backend {backend!r}."
    )


def devices(name: str) -> int:
    """How many devices compute under a strategy, for accelerator hours.

    Must be called inside its `scope`.
    """
    if name == "none":
        return 1
    if keras.config.backend() == "jax":
        return len(keras.distribution.list_devices())
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def host() -> tuple[int, int]:
    """This process's number, and how many there are that share each batch."""
    if keras.config.backend() == "jax":
        import jax

        return jax.process_index(), jax.process_count()
    # TensorFlow's strategies here have one process, which feeds all devices.
    return 0, 1


def _of_tensorflow(name):
    import tensorflow as tf

    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    return tf.distribute.TPUStrategy(resolver)
