"""The sizes of a T5, without the packages that build one."""

import dataclasses

from keras_fusion.errors import FusionError


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The sizes of a T5 (encoder and decoder have `num_layers` layers each).

    The first three are widths, which fusion adds up; the others stay.

    Attributes:
        hidden_dim: int.
        intermediate_dim: int.
        num_heads: int.
        num_layers: int.
        head_size: int.
        vocabulary_size: int. Token ids, sentinels included.
    """

    hidden_dim: int
    intermediate_dim: int
    num_heads: int
    num_layers: int
    head_size: int
    vocabulary_size: int

    def halved(self) -> "Architecture":
        """The architecture of one of two equal parents.

        Raises:
            FusionError: if a width is odd.
        """
        for name in WIDTHS:
            if getattr(self, name) % 2:
                raise FusionError(
                    f"`{name}` must be even, to be halved for the parents. Received: "
                    f"{name}={getattr(self, name)}."
                )
        halves = {name: getattr(self, name) // 2 for name in WIDTHS}
        return dataclasses.replace(self, **halves)


WIDTHS = ("hidden_dim", "intermediate_dim", "num_heads")

# What a recipe says of a shape; the vocabulary is the same for all of them.
SIZES = (*WIDTHS, "num_layers", "head_size")
