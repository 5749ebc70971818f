"""Block norms that become the stock norms they are made of, in the live model."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np

from keras_fusion.errors import GrowthError
from keras_fusion.graft.live import accept_old_weights
from keras_fusion.models import exchange, host, private, tree
from keras_fusion.models.block_norms import BlockNorm
from keras_fusion.models.private import attachments
from keras_fusion.models.private.attributes import instance_attributes
from keras_fusion.models.stock import is_block_norm


def shapes_with_stock_norms(live: keras.Model) -> list[list[int]]:
    """The shapes of the weights that the live model will have."""
    extra = _extra(live)
    return [list(v.shape) for v in live.weights if id(v) not in extra]


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
    before = [(norm, norm.blocks, _values(norm)) for norm in norms]
    state, put_back = dict(instance_attributes(live)), attachments.remembered(live)
    try:
        _make_stock(live, norms)
        yield
    except BaseException:
        instance_attributes(live).clear()
        instance_attributes(live).update(state)
        put_back()
        for norm, blocks, values in before:
            if not is_block_norm(norm):
                exchange.make_block_wise_again(norm, blocks, values)
        exchange.mark_owners(live)
        raise
    finally:
        for _, layer in tree.walk(live):
            private.track_again(layer)


def _make_stock(live: keras.Model, norms: Sequence[keras.Layer]) -> None:
    shapes = [tuple(v.shape) for v in live.weights]
    dropping = _dropping(live)
    try:
        for norm in norms:
            exchange.make_stock(norm)
        exchange.unmark(live)
        for _, layer in tree.walk(live):
            private.track_again(layer)
        accept_old_weights(live, shapes, dropping)
        private.compile_again(live)
    except Exception as error:
        raise GrowthError(
            f"The norms of {live.name!r} could not become stock norms ({error}); it "
            "trains on as it was."
        ) from error


def _values(norm: BlockNorm) -> dict[str, np.ndarray]:
    return {v.name: np.array(host.read(v)) for v in exchange.extra_variables(norm)}


def _extra(live: keras.Model) -> set[int]:
    norms = exchange.block_norms(live)
    return {id(v) for norm in norms for v in exchange.extra_variables(norm)}


def _dropping(live: keras.Model) -> Callable[[list], list]:
    """The function that drops from weights of the live model what stock norms lack."""
    extra = _extra(live)
    kept = [id(v) not in extra for v in live.weights]

    def dropped(weights: list[np.ndarray]) -> list[np.ndarray]:
        return [w for w, keep in zip(weights, kept, strict=True) if keep]

    return dropped
