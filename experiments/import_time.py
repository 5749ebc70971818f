"""Measures how much longer `import keras_fusion` takes than the `import keras` in it.

python -m experiments.import_time                      # on this backend
KERAS_BACKEND=jax python -m experiments.import_time

Processor time in fresh processes, each of which imports Keras and then this package. Wall
time says more of what else the machine does.
"""

import argparse
import statistics
import subprocess
import sys

CODE = """
import time
begin = time.process_time()
import keras
between = time.process_time()
import keras_fusion
print(between - begin, time.process_time() - begin)
"""


def ratio(rounds: int) -> float:
    """The median ratio of both imports to the first."""
    found = []
    for _ in range(rounds + 1):
        done = subprocess.run(
            [sys.executable, "-c", CODE], check=True, capture_output=True, text=True
        )
        keras, both = map(float, done.stdout.split())
        found.append(both / keras)
    return statistics.median(found[1:])  # the first one may write byte code


def main() -> None:
    """Prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    print(f"{ratio(parser.parse_args().rounds):.3f} of `import keras`")


if __name__ == "__main__":
    main()
