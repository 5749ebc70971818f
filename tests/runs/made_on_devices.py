"""A process that grows models on 8 simulated devices, on the devices and on the host.

Usage: python made_on_devices.py CASES [PORT COUNT RANK]; with a port it is one of several
processes, which have the devices together. Prints, case by case, how many variables were
made on the devices, how many of the grown ones are split, and which weights and slots
differ from the host's, to the bit; and whether sums over split arrays do.
"""

import json
import sys

import jax
import keras
import numpy as np

import keras_fusion
from experiments import runs_of_processes
from keras_fusion.models import shards
from keras_fusion.values import (
    device_programs,
    device_statistics,
    on_devices,
    reductions,
)

WIDTH, HEADS, LENGTH, VOCABULARY = 16, 4, 6, 44


def layout_map(mesh):
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["embedding/embeddings"] = ("model", "batch")
    layouts[".*(query|key|value)/kernel"] = ("batch", "model", None)
    layouts[".*attention_output/kernel"] = ("model", None, "batch")
    layouts[".*(up|gate|readout).*/kernel"] = ("batch", "model")
    layouts[".*down.*/kernel"] = ("model", None)
    return layouts


def distribution():
    """Kernels over both axes of the mesh, the embeddings the other way round."""
    mesh = keras.distribution.DeviceMesh(
        (jax.device_count() // 2, 2), ("batch", "model")
    )
    return keras.distribution.ModelParallel(
        layout_map=layout_map(mesh), batch_dim_name="batch"
    )


def transformer(make_optimizer, norm=keras.layers.RMSNormalization):
    """A pre-norm decoder whose optimizer has a state, the same each time."""
    keras.backend.clear_session()  # It forgets the distribution, too.
    keras.distribution.set_distribution(distribution())
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH)(inputs)
    for i in range(2):
        h = norm()(x)
        h = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(h, h)
        x = x + h
        h = norm()(x)
        h = layers.Dense(3 * WIDTH, "gelu", name=f"up{i}")(h)
        x = x + layers.Dense(WIDTH, name=f"down{i}")(h)
    model = keras.Model(inputs, layers.Dense(VOCABULARY, name="readout")(norm()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(make_optimizer(), loss)
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    for slot in model.optimizer.variables[2:]:
        values = rng.uniform(0.1, 1.0, slot.shape)
        slot.assign((values * (slot.dtype == "float32")).astype(slot.dtype))
    return model


OPERATORS = {
    "zeros": lambda: keras_fusion.FusionOperator(off_diagonal="zeros", seed=1),
    "paired": lambda: keras_fusion.FusionOperator(off_diagonal="paired", seed=1),
    "three": lambda: keras_fusion.FusionOperator(
        factor=3, off_diagonal="paired", seed=1
    ),
    "random": lambda: keras_fusion.FusionOperator(off_diagonal="random", seed=1),
    "half": lambda: keras_fusion.FusionOperator(factor=1.5, seed=1),
    "HyperCloning": lambda: keras_fusion.HyperCloning(noise_scale=0.1, seed=1),
    "shuffled": lambda: keras_fusion.Net2Net(draw="random", exact=False, seed=1),
    "Lemon": lambda: keras_fusion.Lemon(seed=1),
    "Lemon half": lambda: keras_fusion.Lemon(factor=1.5, seed=1),
    "depth": lambda: keras_fusion.DepthStacking(),
    "new depth": lambda: keras_fusion.DepthStacking(new_blocks="random"),
    "chain": lambda: keras_fusion.Chain(
        [
            keras_fusion.DepthStacking(),
            keras_fusion.HyperCloning(noise_scale=0.1, seed=1),
        ]
    ),
}
OPTIMIZERS = {
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "Adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "Muon": lambda: keras.optimizers.Muon(0.01),
}


def grown(operator, optimizer, on_the_devices):
    """State by name, and how many variables were made on the devices."""
    made = []
    own = on_devices.fill, on_devices.fill_slot

    def counted(fill):
        def call(*arguments):
            made.append(fill(*arguments))
            return made[-1]

        return call

    model = transformer(OPTIMIZERS[optimizer])
    on_devices.fill, on_devices.fill_slot = map(counted, own)
    try:
        with shards.used(on_the_devices):
            keras_fusion.grow(model, OPERATORS[operator](), verbose=0)
    finally:
        on_devices.fill, on_devices.fill_slot = own
    variables = [*model.variables, *model.optimizer.variables]
    split = sum(not v.value.is_fully_replicated for v in variables)
    return [(v.path, own_parts(v.value)) for v in variables], sum(made), split


def own_parts(array):
    """The parts of an array on this process's devices, one after the other."""
    return np.concatenate([np.ravel(x.data) for x in array.addressable_shards])


def compared(*case):
    ours, count, split = grown(*case, True)
    theirs, none, _ = grown(*case, False)
    assert none == 0
    different = [
        (path, float(np.max(np.abs(a - b))))
        for (path, a), (_, b) in zip(ours, theirs, strict=True)
        if a.shape != b.shape or not np.array_equal(a, b)
    ]
    return {"made": count, "split": split, "different": different}


def sums():
    """Deviations of split arrays with long rows: on the devices, and on the host."""
    mesh, found = distribution().device_mesh.backend_mesh, []
    rng = np.random.default_rng(0)
    for shape in (16, 512), (32, 4, 544), (64, 1032):
        array = rng.standard_normal(shape, "float32")
        for ends in ("batch", "model"), ("model", None), (None, ("batch", "model")):
            spec = (ends[0], *[None] * (len(shape) - 2), ends[1])
            sharding = jax.sharding.NamedSharding(
                mesh, jax.sharding.PartitionSpec(*spec)
            )
            variable = keras.Variable(array)
            variable._value = jax.device_put(array, sharding)
            split = shards.Split.of(sharding, shape)
            own = device_statistics.deviation(split, 1000, variable, 0.0, 1.0, 0.0)
            found.append([own.value(), float(reductions.deviation([array]))])
    return found


def main():
    if len(sys.argv) > 2:
        runs_of_processes.join(*map(int, sys.argv[2:]))
    device_programs.LEAST_ENTRIES = 50  # many pieces, of which the last ones overlap
    cases = json.loads(sys.argv[1])
    reports = {", ".join(case): compared(*case) for case in cases}
    if len(sys.argv) == 2:
        reports["sums"] = sums()
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
