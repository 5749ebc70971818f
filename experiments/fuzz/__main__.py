"""`python -m experiments.fuzz`: grows random models and judges the results.

    KERAS_BACKEND=tensorflow python -m experiments.fuzz --count 5000 --float64

Exits with 1 if a promise was broken; each fault is printed with its seed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import keras

from experiments.fuzz import judge


def main() -> int:
    """Runs the fuzz."""
    parser = argparse.ArgumentParser(prog="python -m experiments.fuzz")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--json", help="path to write all verdicts to")
    options = parser.parse_args()
    if options.float64:
        keras.config.set_floatx("float64")
        keras.mixed_precision.set_global_policy("float64")
    verdicts, begin = [], time.perf_counter()
    for seed in range(options.first, options.first + options.count):
        verdicts.append(judge.judged(seed))
        if seed % 20 == 0:
            keras.utils.clear_session()
    print(judge.summary(verdicts))
    print(f"{time.perf_counter() - begin:.0f} s")
    if options.json:
        rows = [[v.seed, v.growth, v.result, v.detail] for v in verdicts]
        Path(options.json).write_text(json.dumps(rows))
    return int(any(verdict.is_fault for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
