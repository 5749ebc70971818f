"""Damages of the kinds that disks and copies make to files."""

import os
import random


def damage_count(default):
    """How many damages to try; KERAS_FUSION_DAMAGES=200 searches longer."""
    return int(os.environ.get("KERAS_FUSION_DAMAGES", default))


def damaged(content, rng):
    """Bytes with one damage of a kind that disks and copies make."""
    content = bytearray(content)
    kind = rng.choice(["flip", "byte", "cut", "zeros", "gone", "garbage"])
    place = rng.randrange(len(content))
    if kind == "flip":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        content[place] = (content[place] + rng.randrange(1, 256)) % 256
    elif kind == "cut":
        del content[place:]
    elif kind == "zeros":
        content[place:] = bytes(len(content) - place)
    elif kind == "gone":
        del content[place : place + rng.randrange(1, 20)]
    else:
        content[:] = rng.randbytes(len(content))
    return bytes(content)


def damages(path, count, seed=0):
    """Writes damaged versions of a file, one after the other, and then the file again."""
    whole, rng = path.read_bytes(), random.Random(seed)
    for _ in range(count):
        broken = damaged(whole, rng)
        if broken != whole:
            path.write_bytes(broken)
            yield broken
    path.write_bytes(whole)
