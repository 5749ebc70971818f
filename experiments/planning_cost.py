"""Measures what planning a growth costs, against that of a whole factor.

python -m experiments.planning_cost                      # on this backend
KERAS_BACKEND=jax python -m experiments.planning_cost --blocks 20 40

The model is pre-norm blocks of width 16. Growths alternate in one process, and each ratio
is of medians over the rounds.
"""

import argparse
import gc
import itertools
import time

import keras

import keras_fusion as kf
from experiments.timing import clocked, summary

WHOLE = "factor 2"
GROWTHS = {
    WHOLE: lambda: kf.FusionOperator(factor=2, seed=0),
    "factor 1.5": lambda: kf.FusionOperator(factor=1.5, seed=0),
    "Lemon(1.5)": lambda: kf.Lemon(factor=1.5, seed=0),
    "ZeroPadding(1.5)": lambda: kf.ZeroPadding(factor=1.5),
}


def stack(blocks: int, attention: bool, width: int = 16) -> keras.Model:
    """Pre-norm feed-forward blocks, with or without attention before each."""
    layers = keras.layers
    inputs = keras.Input((8,), dtype="int32" if attention else "float32")
    first = layers.Embedding(30, width) if attention else layers.Dense(width)
    x = first(inputs)
    for _ in range(blocks):
        if attention:
            y = layers.LayerNormalization()(x)
            x = layers.Add()([x, layers.MultiHeadAttention(4, width // 4)(y, y)])
        y = layers.Dense(2 * width, "relu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(width)(y)])
    return keras.Model(inputs, layers.Dense(4)(layers.LayerNormalization()(x)))


def spent(model: keras.Model, rounds: int) -> dict[str, dict]:
    """The time of each growth's plan, in seconds."""
    times = {name: [] for name in GROWTHS}
    for growth in GROWTHS.values():
        growth().plan(model, seed=0)  # A process's first plans set much up.
    for _ in range(rounds):
        for name, growth in GROWTHS.items():
            operator = growth()
            gc.collect()  # What the last one left is not this one's.
            times[name].append(clocked(lambda g=operator: g.plan(model, seed=0)))
    return summary(times)


def main() -> None:
    """Prints seconds of processor time, and their ratio to those of a whole factor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[40])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{keras.config.backend()}, {time.strftime('%Y-%m-%d')}")
    cases = itertools.product((False, True), options.blocks)
    for attention, blocks in cases:
        kind = "attention and feed-forward" if attention else "feed-forward"
        found = spent(stack(blocks, attention), options.rounds)
        print(f"{blocks} blocks of {kind}:")
        for name, row in found.items():
            cpu = row["processor_seconds"]
            ratio = cpu / found[WHOLE]["processor_seconds"]
            wall = row["seconds"] / found[WHOLE]["seconds"]
            print(f"  {name}: {cpu:.2f} s ({ratio:.2f}x; {wall:.2f}x by the clock)")


if __name__ == "__main__":
    main()
