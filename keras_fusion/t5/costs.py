"""The cost of a tree: FLOPs, accelerator hours, and wall time.

A training that is used twice in a tree, as in a self-fusion, is paid for once.
"""

import dataclasses
from collections.abc import Callable

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


@dataclasses.dataclass(frozen=True)
class Spent:
    """What one training takes.

    Attributes:
        flops: int.
        hours: float. Wall time.
        devices: int. That compute at the same time.
    """

    flops: int
    hours: float
    devices: int

    @classmethod
    def of(cls, result: dict) -> "Spent":
        """What a finished training took, from its result."""
        return cls(result["flops"], result["seconds"] / 3600, result["devices"])


def cost(node: Node, spent: Callable[[Node], Spent]) -> Cost:
    """Adds up what a tree's trainings take.

    Args:
        node: `Node`, the root.
        spent: function from a node to what its own training takes.

    Returns:
        A `Cost`.
    """
    own, every = spent(node), [spent(each) for each in trainings([node])]
    return Cost(
        flops=sum(each.flops for each in every),
        own_flops=own.flops,
        accelerator_hours=sum(each.hours * each.devices for each in every),
        own_accelerator_hours=own.hours * own.devices,
        hours_in_series=sum(each.hours for each in every),
        hours_in_parallel=_longest(node, spent),
    )


def _longest(node, spent):
    before = max((_longest(parent, spent) for parent in node.parents), default=0.0)
    return spent(node).hours + before
