"""Draws the pictures of README.md and docs/how_it_works.md, and the figures beside them.

python -m experiments.pictures          # all of them, some minutes on two cores

A small transformer reads the documentation strings of Python's standard library byte by
byte. It grows twice in one `fit`, and what is said of that run is written into README.md.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

import keras_fusion
from keras_fusion.flops import training_step_flops
from keras_fusion.t5 import corpus, markdown

ROOT = Path(__file__).resolve().parents[1]
LENGTH, BATCH, HEAD = 64, 32, 8
SHOWN = "bytes|attention0/query/k|up0|logits"


def transformer(width: int, blocks: int = 2, seed: int = 0) -> keras.Model:
    """A pre-norm decoder over bytes."""
    keras.utils.set_random_seed(seed)
    ids = keras.Input((LENGTH,), dtype="int32")
    places = ops.cumsum(ops.ones_like(ids), axis=1) - 1
    x = layers.Embedding(256, width, name="bytes")(ids)
    x = x + layers.Embedding(LENGTH, width, name="places")(places)
    for i in range(blocks):
        h = layers.LayerNormalization(name=f"norm_a{i}")(x)
        attention = layers.MultiHeadAttention(width // HEAD, HEAD, name=f"attention{i}")
        x = x + attention(h, h, use_causal_mask=True)
        h = layers.LayerNormalization(name=f"norm_b{i}")(x)
        h = layers.Dense(4 * width, activation="gelu", name=f"up{i}")(h)
        x = x + layers.Dense(width, name=f"down{i}")(h)
    x = layers.LayerNormalization(name="norm")(x)
    return keras.Model(ids, layers.Dense(256, name="logits")(x))


def compiled(model: keras.Model, rate: float = 3e-3) -> keras.Model:
    """The model, compiled for the next byte."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    return model


def rows(documents: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, both of shape `(rows, LENGTH)`: the text, and one byte on."""
    text = np.frombuffer("\n".join(documents).encode(), "uint8").astype("int32")
    count = (len(text) - 1) // LENGTH
    return (
        text[: count * LENGTH].reshape(count, LENGTH),
        text[1 : count * LENGTH + 1].reshape(count, LENGTH),
    )


def draw_blocks(folder: Path) -> None:
    """The kernels of fused models: distinct parents, copies, new capacity."""
    a, b = transformer(16, 1, seed=0), transformer(16, 1, seed=1)
    pictures = {
        "distinct": keras_fusion.fuse([a, b], norms="block"),
        "paired": keras_fusion.fuse(a, factor=2, off_diagonal="paired", seed=0),
        "half": keras_fusion.fuse(a, factor=1.5, seed=0),
    }
    for name, fused in pictures.items():
        path = folder / f"blocks_{name}.png"
        keras_fusion.plot_fusion(fused, kernels=SHOWN, path=str(path))


def draw_run(folder: Path, epochs: int, steps: int) -> str:
    """A run that grows twice; returns what is to be said of it."""
    documents = corpus.standard_library()
    (x, y), held_out = rows(documents.training), rows(documents.validation)
    order = np.random.default_rng(0).permutation(len(x))[: steps * BATCH]
    x, y = x[order], y[order]
    held_out = tuple(part[:1024] for part in held_out)
    moments = [epochs // 3 * steps, 2 * (epochs // 3) * steps]
    grow = keras_fusion.DeepFusion(at_step=moments, seed=0, learning_rate_factor=0.5)
    small = compiled(transformer(16))
    batch = x[:BATCH], y[:BATCH], np.ones((BATCH, LENGTH), "float32")
    flops = [
        training_step_flops(compiled(transformer(16 * times)), batch)
        for times in (1, 2, 4)
    ]
    history = small.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=epochs,
        validation_data=held_out,
        callbacks=[grow],
        verbose=0,
    )
    keras_fusion.plot_run(
        history, grow.events, step_flops=flops, path=str(folder / "run.png")
    )
    keras_fusion.plot_fusion(
        small,
        kernels=SHOWN,
        path=str(folder / "blocks_trained.png"),
    )
    first, last = grow.events
    loss = history.history["val_loss"]
    total = epochs * steps
    spent = np.dot(flops, np.diff([0, *moments, total]))
    return (
        f"{first.params_before:,} parameters grow to {last.params_after:,} in two steps. "
        f"Each step changes the outputs\nby at most "
        f"{max(e.function_change for e in grow.events):.0e}; the validation loss keeps "
        f"falling, from {loss[moments[0] // steps - 1]:.2f} at the\nfirst growth to "
        f"{loss[-1]:.2f} nats per byte after {total} steps. The run costs "
        f"{spent / 1e12:.2f} TFLOP."
    )


def main() -> None:
    """Draws them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--steps", type=int, default=100, help="of an epoch")
    parser.add_argument("--folder", type=Path, help="only draw, into this folder")
    options = parser.parse_args()
    folder = options.folder or ROOT / "docs"
    folder.mkdir(parents=True, exist_ok=True)
    draw_blocks(folder)
    told = draw_run(folder, options.epochs, options.steps)
    print(told)
    if options.folder is None:
        markdown.insert(told, ROOT / "README.md", "run")


if __name__ == "__main__":
    main()
