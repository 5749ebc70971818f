"""Compiles training steps for pods of TPUs, before and after a growth, without a TPU.

python -m pip install libtpu==0.0.52            # the TPU compiler, for JAX 0.10
python -m experiments.tpu                       # compiles what is missing
python -m experiments.tpu --pairs T5-S --pods v5e:4x4
python -m experiments.tpu --growths              # compiles the growths themselves
python -m experiments.tpu --page docs/distribution.md   # puts the tables into the page

The step is that of `fit` on the JAX backend: mixed bfloat16, Adafactor, the state
donated. Compiled are a small model, what a growth of its width makes of it, and a model
built at that size. No variable has a value: memory is needed for the compiler alone.
Where the compiler is given the same program for the grown model as for the native one, it
is compiled once. Attention is computed as on the CPU: Keras asks for fused attention only
where it finds a TPU.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Tests import it, with an environment of their own.
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import keras

from experiments.tpu import growing, models, tables
from experiments.tpu.compiling import Step, devices
from keras_fusion import graft

PODS = {"v5e:4x4": (4, 4), "v5e:16x16": (16, 16)}
SHARDINGS = ("DataParallel", "ModelParallel")
RESULTS = Path(__file__).parents[1] / "results" / "tpu_steps.json"
GROWTHS = RESULTS.with_name("tpu_growths.json")


def distribution(name: str, pod: str) -> Any:
    """Rows of a batch over all devices; or over one axis, and kernels over both."""
    if name == "DataParallel":
        mesh = keras.distribution.DeviceMesh(
            (devices(pod).size,), ("batch",), devices=devices(pod)
        )
        return keras.distribution.DataParallel(
            device_mesh=mesh, auto_shard_dataset=False
        )
    mesh = keras.distribution.DeviceMesh(
        PODS[pod], ("batch", "model"), devices=devices(pod)
    )
    return keras.distribution.ModelParallel(
        layout_map=layout_map(mesh), batch_dim_name="batch", auto_shard_dataset=False
    )


def layout_map(mesh: Any) -> Any:
    """Kernels and tables over both axes: heads and hidden units over `model`.

    Where the pod has more devices than the models have heads, each head is split; a
    vocabulary of 32,100 tokens is split by its features alone.
    """
    into, out_of = ("batch", "model"), ("model", "batch")
    is_wide = mesh.shape[1] > 8
    heads = ("batch", None, "model") if is_wide else ("batch", "model", None)
    layouts = keras.distribution.LayoutMap(mesh)
    table = (None, "model") if is_wide else out_of
    layouts[".*token_embedding/embeddings"] = table
    layouts[".*token_embedding/reverse_embeddings"] = table[::-1] if is_wide else out_of
    # Patterns of whole paths. In keras-hub's Llama, attention kernels have axes of heads.
    layouts[".*attention.*(query|key|value).kernel"] = heads
    layouts[".*attention_output.kernel"] = (*heads[1:], "batch")
    layouts[".*feedforward_(intermediate|gate)_dense.kernel"] = into
    layouts[".*feedforward_output_dense.kernel"] = out_of
    # keras-hub's T5.
    layouts[".*(query|key|value|input|gate)_projector.*kernel"] = into
    layouts[".*output_projector.kernel"] = out_of
    return layouts


def placed(model: keras.Model, chosen: Any) -> keras.Model:
    """Gives a model's variables the shardings that a distribution has for their paths."""
    for variable in model.variables:
        variable._layout = chosen.get_variable_layout(variable)
    return model


def steps(pair: models.Pair, pod: str, sharding: str) -> Iterator[tuple[str, Step]]:
    """Yields `(name, step)` of the models of a pair: small, grown, and native."""
    rows = pair.rows(PODS[pod][0] if sharding == "ModelParallel" else devices(pod).size)
    small = pair.untrained("small")
    growth, chosen = pair.growth(small), distribution(sharding, pod)
    for name, model in (
        (pair.small, small),
        (f"{pair.small}, grown", growth.fused),
        (pair.large, pair.untrained("large")),
    ):
        model = models.compiled(placed(model, chosen), pair, rows)
        with chosen.scope():  # As `keras_fusion.preview` tells them.
            if model is growth.fused:
                predicted = graft.device_bytes(small, growth)[-1]
            else:
                predicted = graft.device_bytes(model)[0]
        yield name, Step(model, models.batch(pair, rows), chosen, predicted)


def measure(pairs: list[models.Pair], pods: list[str], path: Path) -> None:
    """Compiles what the file of results lacks, one program at a time."""
    results = json.loads(path.read_text()) if path.exists() else {}
    programs = {r["program"]: r for r in results.values()}
    for pod in pods:
        for pair in pairs:
            for sharding in SHARDINGS:
                for name, step in steps(pair, pod, sharding):
                    key = f"{name} | {sharding} | {pod}"
                    if "predicted" in results.get(key, {}):
                        continue
                    known = programs.get(step.program)
                    result = known or {"program": step.program, **step.figures()}
                    results[key] = result | {"predicted": step.predicted}
                    programs[step.program] = results[key]
                    path.write_text(json.dumps(results, indent=1) + "\n")
                    print(key, json.dumps(result), flush=True)


def measure_growths(pairs: list[models.Pair], pods: list[str], path: Path) -> None:
    """Compiles the growths that the file of results lacks."""
    results = json.loads(path.read_text()) if path.exists() else {}
    for pod in pods:
        for pair in pairs:
            for sharding in SHARDINGS:
                key = f"{pair.small} to {pair.large} | {sharding} | {pod}"
                if key in results:
                    continue
                results[key] = grown(pair, pod, sharding)
                path.write_text(json.dumps(results, indent=1) + "\n")
                print(key, json.dumps(results[key]), flush=True)


def grown(pair: models.Pair, pod: str, sharding: str) -> dict[str, Any]:
    """The figures of the growth of a pair's small model, see `growing.figures`."""
    small, chosen = pair.untrained("small"), distribution(sharding, pod)
    growth = pair.growth(small)
    for model in (small, growth.fused):
        models.compiled(placed(model, chosen), pair, pair.rows(devices(pod).size))
    return growing.figures(growth, chosen)


def main() -> None:
    """Compiles, and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = {pair.small: pair for pair in models.pairs()}
    parser.add_argument("--pairs", nargs="*", choices=known, default=list(known))
    parser.add_argument("--pods", nargs="*", choices=PODS, default=list(PODS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--growths", nargs="?", type=Path, const=GROWTHS)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if options.page:
        tables.insert(json.loads(options.results.read_text()), options.page)
        tables.insert_growths(json.loads(GROWTHS.read_text()), options.page)
        return
    keras.config.set_dtype_policy("mixed_bfloat16")
    pairs = [known[name] for name in options.pairs]
    if options.growths:
        measure_growths(pairs, options.pods, options.growths)
    else:
        measure(pairs, options.pods, options.results)


if __name__ == "__main__":
    main()
