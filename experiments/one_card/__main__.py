"""Trains models of 2.5M, 10M and 39M parameters on one accelerator, in eight minutes.

For each pair of sizes: the small model alone, the big one from scratch at two rates, the
small one grown at 30% of the steps (its steps counted), and one that exists grown. Told
are losses, FLOPs, the card's seconds, a growth's seconds, and seconds per step before
and after it. Nothing is downloaded: the text is packed before.

python -m experiments.one_card --pack text.npz
KERAS_BACKEND=jax python -m experiments.one_card --text text.npz --results card.json
"""

import argparse
import os
from pathlib import Path

if __name__ == "__main__":  # Tests import it, with an environment of their own.
    os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

from experiments.one_card.packed_text import PackedText, pack
from experiments.one_card.scales import SCALES
from experiments.one_card.study import Study

TOKENS = Path("experiments_output") / "tokens"


def device():
    """The name of what the models are trained on."""
    if keras.config.backend() != "jax":
        return keras.config.backend()
    import jax

    return jax.devices()[0].device_kind


def main(arguments=None):
    """Parses the command, and trains or packs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, help="write the text to this file")
    parser.add_argument("--source", default="novels", help="of the text to pack")
    parser.add_argument("--text", type=Path, help="the packed text")
    parser.add_argument("--results", type=Path, default=Path("one_card.json"))
    parser.add_argument("--scale", choices=SCALES, default="card")
    parser.add_argument("--minutes", type=float, default=8.0)
    options = parser.parse_args(arguments)
    if options.pack:
        pack(options.source, TOKENS, options.pack)
        return
    if options.text is None:
        parser.error("--text is missing: the file that --pack has written")
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    packed = PackedText.read(options.text)
    scale = SCALES[options.scale]
    Study(scale, packed, options.results, options.minutes, device()).run()


if __name__ == "__main__":
    main()
