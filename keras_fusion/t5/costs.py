"""The cost of a tree: FLOPs, accelerator hours, and wall time.

A training that is used twice in a tree, as in a self-fusion, is paid for once.
"""

import dataclasses

from keras_fusion.t5.store import Store
from keras_fusion.t5.tree import Node, trainings


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of training a tree's root, and of all that it starts from.

    Attributes:
        flops: int. Training FLOPs of the whole tree.
        own_flops: int. Of the root alone, which is all that is paid if its parents are
            there already.
        accelerator_hours: float. Of the whole tree, summed over all devices.
        own_accelerator_hours: float.
        hours_in_series: float. Wall time if one training follows the other.
        hours_in_parallel: float. Wall time if all parents are trained at the same time:
            the longest path through the tree.
    """

    flops: int
    own_flops: int
    accelerator_hours: float
    own_accelerator_hours: float
    hours_in_series: float
    hours_in_parallel: float


def cost(node: Node, seed: int, store: Store) -> Cost:
    """Adds up the figures of a tree's trainings, which must all have finished.

    Args:
        node: `Node`, the root.
        seed: int.
        store: `Store`.

    Returns:
        A `Cost`.
    """
    own = store.entry(seed, node).result()
    all_of_them = [store.entry(seed, n).result() for n in trainings([node])]
    return Cost(
        flops=sum(r["flops"] for r in all_of_them),
        own_flops=own["flops"],
        accelerator_hours=sum(_hours(r) * r["devices"] for r in all_of_them),
        own_accelerator_hours=_hours(own) * own["devices"],
        hours_in_series=sum(map(_hours, all_of_them)),
        hours_in_parallel=_longest(node, seed, store),
    )


def _longest(node, seed, store):
    own = _hours(store.entry(seed, node).result())
    return own + max((_longest(p, seed, store) for p in node.parents), default=0.0)


def _hours(result):
    return result["seconds"] / 3600
