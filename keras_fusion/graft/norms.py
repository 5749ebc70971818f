"""Block norms that become the stock norms they are made of, in the live model."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np

from keras_fusion.errors import GrowthError
from keras_fusion.graft.attributes import attributes
from keras_fusion.graft.live import accept_old_weights
from keras_fusion.models import exchange, private, tree
from keras_fusion.models.block_norms import BLEND
from keras_fusion.models.private import attachments


def shapes_with_stock_norms(live: keras.Model) -> list[list[int]]:
    """The shapes of the weights that the live model will have."""
    blends = _blends(live)
    return [list(v.shape) for v in live.weights if id(v) not in blends]


@contextlib.contextmanager
def stock_norms(live: keras.Model) -> Iterator[None]:
    """Opens a scope in which all block norms of a live model are stock norms.

    Its other variables, and so its optimizer, stay as they are. If anything in the scope
    fails, the norms are block-wise again at its end.

    Args:
        live: the model in training.

    Raises:
        GrowthError: if it failed; the model continues to train as before.
    """
    norms = exchange.block_norms(live)
    before = [(norm, norm.blocks, float(norm.blend)) for norm in norms]
    state, put_back = dict(attributes(live)), attachments.remembered(live)
    try:
        _make_stock(live, norms)
        yield
    except BaseException:
        attributes(live).clear()
        attributes(live).update(state)
        put_back()
        for norm, blocks, blend in before:
            if not hasattr(norm, BLEND):
                exchange.make_block_wise(norm, blocks)
                norm.blend.assign(blend)
        exchange.mark_owners(live)
        raise
    finally:
        for _, layer in tree.walk(live):
            private.track_again(layer)


def _make_stock(live: keras.Model, norms: Sequence[keras.Layer]) -> None:
    shapes = [tuple(v.shape) for v in live.weights]
    without_blends = _dropping(live)
    try:
        for norm in norms:
            exchange.make_stock(norm)
        exchange.unmark(live)
        for _, layer in tree.walk(live):
            private.track_again(layer)
        accept_old_weights(live, shapes, without_blends)
        private.compile_again(live)
    except Exception as error:
        raise GrowthError(
            f"The norms of {live.name!r} could not become stock norms ({error}); it "
            "trains on as it was."
        ) from error


def _blends(live: keras.Model) -> set[int]:
    return {id(norm.blend) for norm in exchange.block_norms(live)}


def _dropping(live: keras.Model) -> Callable[[list], list]:
    """The function that drops the blends from weights of the live model."""
    blends = _blends(live)
    kept = [id(v) not in blends for v in live.weights]

    def dropped(weights: list[np.ndarray]) -> list[np.ndarray]:
        return [w for w, keep in zip(weights, kept, strict=True) if keep]

    return dropped
