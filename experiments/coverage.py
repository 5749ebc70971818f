"""Runs every transformer family of keras-hub through a fusion, and writes the table.

python -m experiments.coverage            # writes the table of docs/coverage.md
python -m experiments.coverage Bert GPT2  # prints these families only
python -m experiments.coverage --float64  # prints how exact block norms are in float64
"""

import argparse
import os
import pathlib
import tempfile

import keras
import keras_hub
import numpy as np

import keras_fusion
from experiments import families
from keras_fusion.models import probe, samples
from keras_fusion.t5 import markdown

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "coverage.md"
HEAD = (
    "family",
    "model",
    "self-fusion",
    "block",
    "calibrated",
    "joint",
    "reloaded",
    "trained",
)


def main():
    """Runs the families that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="defaults to all, into docs/")
    parser.add_argument("--float64", action="store_true")
    options = parser.parse_args()
    chosen = options.families
    if options.float64:
        print_in_float64(chosen or families.ALL)
        return
    rows, fused = [], 0
    for family in chosen or families.ALL:
        lines = [row(family, name, model) for name, model in pairs(family).items()]
        fused += not any("refused" in line[2] for line in lines)
        rows += lines
        print("\n".join("  ".join(line) for line in lines), flush=True)
    if not chosen:
        text = (
            f"With Keras {keras.__version__}, keras-hub {keras_hub.__version__} and the "
            f"{keras.config.backend()} backend, {fused} of {len(families.ALL)} families "
            f"are fused.\n\n{markdown.table(HEAD, rows)}\n"
        )
        markdown.insert(text, PAGE)


def pairs(family):
    """Two parents of each kind of model: the second one's features are 3 times as large."""
    first, second = (families.models(family, seed=seed) for seed in (0, 1))
    for model in first.values():
        perturb(model, 1.0)
    for model in second.values():
        perturb(model, 3.0)
    return {name: (first[name], second[name]) for name in first}


def perturb(model, scale):
    """Moves the weights by noise, and enlarges what the embeddings put in."""
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        value = keras.ops.convert_to_numpy(variable)
        noise = 0.1 * rng.standard_normal(value.shape)
        factor = scale if "embedding" in variable.path else 1.0
        variable.assign((factor * (value + noise)).astype(value.dtype))


def row(family, name, parents):
    """One line of the table."""
    try:
        cells = measure(*parents)
    except keras_fusion.FusionError as error:
        cells = [f"refused: {str(error).split(': ', 1)[-1]}"] + [""] * 5
    return [family, name, *cells]


def measure(model, other):
    """Figures of one kind of model, as text."""
    inputs = samples.accepted(model)
    before = probe.outputs(model, inputs)
    fused = keras_fusion.fuse(model, factor=2, off_diagonal="paired", seed=0)
    own = probe.change(before, probe.outputs(fused, inputs))
    mean = probe.mean_outputs([model, other], inputs)
    distances = []
    for norms in ("calibrated", "joint"):
        joined = keras_fusion.fuse([model, other], norms=norms, probe=inputs)
        distances.append(distance(mean, probe.outputs(joined, inputs)))
    return [
        f"{own:.0e}",
        block_wise(model, other, inputs, mean),
        *(f"{d:.2f}" for d in distances),
        _through_a_file(fused, model, inputs),
        "yes" if trains(model, inputs, before) else "no",
    ]


def block_wise(model, other, inputs, mean):
    """Distance from the mean of the parents under block norms."""
    try:
        joined = keras_fusion.fuse([model, other], norms="block")
    except keras_fusion.FusionError:
        return "refused"
    return f"{distance(mean, probe.outputs(joined, inputs)):.0e}"


def print_in_float64(chosen):
    """Prints how far from the mean of the parents each model is in float64."""
    keras.config.set_floatx("float64")
    keras.mixed_precision.set_global_policy("float64")
    # The linear attention of keras-hub multiplies float32 by float64.
    families.SPECIAL.update({"Qwen3_5": {}, "Qwen3_5Moe": {}})
    for family in chosen:
        for name, parents in pairs(family).items():
            inputs = samples.accepted(parents[0])
            fused = keras_fusion.fuse(list(parents), norms="block")
            mean = np.mean([in_float64(model, inputs) for model in parents], axis=0)
            change = np.linalg.norm(in_float64(fused, inputs) - mean)
            print(f"{family}  {name}  {change / np.linalg.norm(mean):.0e}", flush=True)
        keras.utils.clear_session()


def in_float64(model, inputs):
    """All outputs of a model in one vector, in the precision that they are computed in."""
    outputs = model(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs))
    arrays = map(keras.ops.convert_to_numpy, keras.tree.flatten(outputs))
    return np.concatenate([np.asarray(y, "float64").ravel() for y in arrays])


def distance(expected, outputs):
    """The largest relative distance of any output."""
    return max(
        np.linalg.norm(a - b) / np.linalg.norm(b)
        for a, b in zip(outputs, expected, strict=True)
    )


def _through_a_file(fused, model, inputs):
    """Change by saving and reloading, and whether an unfused model shows it too."""
    change = reloaded(fused, inputs)
    own = f" (unfused: {reloaded(model, inputs):.0e})" if change > 1e-6 else ""
    return f"{change:.0e}{own}"


def reloaded(model, inputs):
    """Change of the outputs by a way through a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        model.save(path)
        again = keras.saving.load_model(path)
    return probe.change(probe.outputs(model, inputs), probe.outputs(again, inputs))


def trains(model, inputs, targets):
    """Whether 3 steps after a growth inside fit() leave the loss finite."""
    grow = keras_fusion.DeepFusion(at_step=1, seed=0, probe=inputs, verbose=0)
    # Without the metrics that a task would add by itself.
    no_metrics = {"metrics": [], "weighted_metrics": []}
    model.compile(keras.optimizers.Adam(1e-3), loss="mse", **no_metrics)
    structure = model(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs))
    targets = keras.tree.pack_sequence_as(structure, targets)
    history = model.fit(inputs, targets, epochs=4, verbose=0, callbacks=[grow])
    return len(grow.events) == 1 and np.isfinite(history.history["loss"]).all()


if __name__ == "__main__":
    main()
