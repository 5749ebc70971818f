"""The devices that a model is trained on: one, all of a machine's, or a TPU's."""

import contextlib

from keras_fusion.errors import FusionError

STRATEGIES = ("none", "mirrored", "tpu")


def scope(name: str) -> contextlib.AbstractContextManager:
    """The context in which models are to be built and trained.

    On JAX, "mirrored" and "tpu" are both data parallelism over all devices.

    Args:
        name: one of `STRATEGIES`.

    Returns:
        A context manager.

    Raises:
        FusionError: if the name is none of them, or the backend or machine cannot do it.
    """
    if name not in STRATEGIES:
        raise FusionError(
            f"`strategy` must be one of {STRATEGIES}. Received: strategy={name!r}."
        )
    backend = _backend()
    if name == "none":
        return contextlib.nullcontext()
    if backend == "jax":
        import keras

        # Each host brings its own part of a batch, see `host`.
        return keras.distribution.DataParallel(auto_shard_dataset=False).scope()
    if backend == "tensorflow":
        return _of_tensorflow(name).scope()
    raise FusionError(
        f"strategy={name!r} works on the TensorFlow and JAX backends. Received: the "
        f"backend {backend!r}."
    )


def devices(name: str) -> int:
    """Counts the devices that compute under a strategy, for accelerator hours.

    Must be called inside its `scope`.
    """
    if name == "none":
        return 1
    if _backend() == "jax":
        import keras

        return len(keras.distribution.list_devices())
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def host() -> tuple[int, int]:
    """This process's number, and the number of processes that share each batch."""
    if _backend() == "jax":
        import jax

        return jax.process_index(), jax.process_count()
    # TensorFlow's strategies here have one process, which feeds all devices.
    return 0, 1


def _backend():
    import keras  # Takes seconds, and the command line needs the names only.

    return keras.config.backend()


def _of_tensorflow(name):
    import tensorflow as tf

    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
        return tf.distribute.TPUStrategy(resolver)
    # Of several kinds, by what TensorFlow looked for first.
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise FusionError(
            f"strategy='tpu' finds no TPU here ({type(error).__name__}: {first})."
        ) from error
