"""How much longer `import keras_fusion` takes than the `import keras` that is in it.

    python benchmarks/import_time.py                      # on this backend
    KERAS_BACKEND=jax python benchmarks/import_time.py

Processor time of fresh processes, taken in turn; the ratio of the medians. Wall time says
more of what else the machine does.
"""

import argparse
import os
import statistics
import subprocess
import sys


def seconds(module: str) -> float:
    """Processor time of a fresh Python that imports a module."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    after = os.times()
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system


def ratio(rounds: int) -> tuple[float, float, float]:
    """The ratio, and the medians of both in seconds."""
    seconds("keras_fusion")  # writes byte code, if need be
    keras, ours = [], []
    for _ in range(rounds):
        keras.append(seconds("keras"))
        ours.append(seconds("keras_fusion"))
    medians = statistics.median(keras), statistics.median(ours)
    return medians[1] / medians[0], *medians


def main() -> None:
    """Prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    found, keras, ours = ratio(parser.parse_args().rounds)
    print(f"import keras {keras:.2f} s, import keras_fusion {ours:.2f} s: {found:.3f}")


if __name__ == "__main__":
    main()
