"""Growth in the middle of `fit` on a TPU, with TensorFlow's `TPUStrategy`.

On a TPU VM:               python tutorials/tpu_growth.py --tpu local
With a TPU node's name:    python tutorials/tpu_growth.py --tpu my-tpu
On one machine's devices:  python tutorials/tpu_growth.py --strategy mirrored

Trains a small pre-norm transformer on made-up sequences, doubles its width in mid-epoch,
and checks that all replicas hold the same grown weights. Without a TPU it says so and goes
on with `MirroredStrategy`.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_fusion

VOCABULARY, LENGTH = 64, 16


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tpu", default="local", help="a TPU's name, or 'local'")
    parser.add_argument("--strategy", choices=("tpu", "mirrored"), default="tpu")
    parser.add_argument("--cpu-devices", type=int, default=1)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64, help="of all replicas")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--grow-at", type=int, default=200)
    parser.add_argument("--steps-per-execution", type=int, default=20)
    return parser.parse_args()


def make_strategy(options):
    """The strategy, and how many steps one call of the compiled function takes."""
    if options.strategy == "tpu":
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(options.tpu)
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
            return tf.distribute.TPUStrategy(resolver), options.steps_per_execution
        except (ValueError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            print(f"No TPU was found under --tpu {options.tpu}: {reason}")
            print("Training on this machine with MirroredStrategy instead.")
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
    # Several replicas in one call of several steps fail, with growth or without.
    return strategy, options.steps_per_execution if len(devices) == 1 else 1


def network(width):
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, width)(inputs)
    for _ in range(2):
        h = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(width // 16, 16)(h, h, use_causal_mask=True)
        h = layers.LayerNormalization()(x)
        x = x + layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(h))
    x = layers.LayerNormalization()(x)
    return keras.Model(inputs, layers.Dense(VOCABULARY)(x))


def sequences(count, batch_size):
    """Sums of two counters modulo the vocabulary: the next token can be told."""
    rng = np.random.default_rng(0)
    start, stride = rng.integers(0, VOCABULARY, (2, count, 1))
    ids = ((start + stride * np.arange(LENGTH + 1)) % VOCABULARY).astype("int32")
    data = tf.data.Dataset.from_tensor_slices((ids[:, :-1], ids[:, 1:]))
    # A TPU's function has fixed shapes.
    return data.repeat().batch(batch_size, drop_remainder=True)


def apart(model):
    """The largest difference between the replicas of any variable."""
    return max(
        float(np.max(np.abs(copy.numpy() - copies[0].numpy())))
        for v in [*model.variables, *model.optimizer.variables]
        for copies in [getattr(v.value, "values", [v.value])]
        for copy in copies
    )


def main():
    options = parse()
    if options.cpu_devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        split = [tf.config.LogicalDeviceConfiguration()] * options.cpu_devices
        tf.config.set_logical_device_configuration(cpu, split)
    strategy, steps_per_execution = make_strategy(options)
    print(f"{type(strategy).__name__}: {strategy.num_replicas_in_sync} replica(s)")
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = network(options.width)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # TPUStrategy compiles with XLA whatever `jit_compile` says.
        model.compile(
            keras.optimizers.Adam(1e-3), loss, steps_per_execution=steps_per_execution
        )
    grow = keras_fusion.DeepFusion(at_step=options.grow_at, learning_rate_factor=0.5)
    history = model.fit(
        sequences(4096, options.batch_size),
        steps_per_epoch=options.steps,
        callbacks=[grow],
        verbose=2,
    )
    (event,) = grow.events
    print(f"Grown at step {event.step} to {event.params_after:,} parameters.")
    print(f"Largest difference between replicas: {apart(model)}")
    print(f"Loss: {history.history['loss'][-1]:.4f}")


if __name__ == "__main__":
    main()
