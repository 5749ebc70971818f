"""Files with block norms, which load wherever this package is imported.

A model in whose blocks norms were exchanged is of a stock class, so that a new one made
of its config has stock norms. When such a norm is to load what a block norm has saved,
it becomes that block norm.
"""

import weakref
from typing import Any

import keras

from keras_fusion.errors import FusionError
from keras_fusion.models import exchange, private, rules, tree
from keras_fusion.models.block_constants import kind_of
from keras_fusion.models.block_norms import BLOCKS
from keras_fusion.models.parent_wise import decision_of
from keras_fusion.models.stock import is_block_norm

# The models that are loading their weights, or were the last to, with the layers that
# hold each of their layers; `None` as long as nobody has asked.
_LOADING: weakref.WeakKeyDictionary[keras.Model, Any] = weakref.WeakKeyDictionary()


def _load(layer: Any, store: Any) -> bool:
    """Loads a block norm, if the store has one; says whether it did."""
    if isinstance(layer, keras.Model):
        _LOADING[layer] = None
    if is_block_norm(layer):
        private.find_under_old_name(store)
    if BLOCKS not in store.keys():  # noqa: SIM118 (a store is no dict)
        return False
    blocks = tuple(int(size) for size in store[BLOCKS])
    if not is_block_norm(layer):
        _become(layer, blocks, [store[str(i)] for i in range(len(store.keys()) - 1)])
    if sum(layer.blocks) != sum(blocks):
        raise FusionError(
            f"{type(layer).__name__} {layer.name!r} has the blocks {layer.blocks}, and in "
            f"the file {blocks}. Build the model with the widths that it had when it was "
            "saved."
        )
    shapes = [tuple(v.shape) for v in layer.all_variables()]
    found = [tuple(store[str(i)].shape) for i in range(len(store.keys()) - 1)]
    if shapes != found:
        raise FusionError(
            f"{type(layer).__name__} {layer.name!r} has other parents than in the file: "
            f"variables of shapes {shapes}, and in the file {found}. Load the file into a "
            "model of the same growths, or into one with stock layers."
        )
    layer.blocks = blocks
    for i, variable in enumerate(layer.all_variables()):
        variable.assign(store[str(i)])
    return True


def _become(layer: Any, blocks: tuple[int, ...], values: list[Any]) -> None:
    rule, decides = rules.find_for_weights(layer), decision_of(layer) is not None
    has_norm = rule is not None and rule.norm is not None
    stock = decides or kind_of(layer) is not None
    if not stock and (not has_norm or exchange.reason_against(layer)):
        raise FusionError(
            f"The file has a layer that computes block by block where the model has the "
            f"{type(layer).__name__} {layer.name!r}, which cannot be one. Build the model "
            "as it was when it was saved, and import the modules that register its "
            "layers with keras_fusion."
        )
    # Behind its own variables and the blend come the shares, or a norm's differences.
    own = len(tree.own_variables(layer))
    groups = int(values[own + 1].shape[0]) if decides else 0
    by_head = len(values) > own + 1
    exchange.make_as(layer, blocks, by_head=by_head, groups=groups)
    for model in list(_LOADING):
        if _LOADING[model] is None:
            _LOADING[model] = exchange.owners(model)
        holding = _LOADING[model]
        if id(layer) in holding:
            exchange.mark([layer], holding)
            private.compile_again(model)


private.before_loading(_load)
