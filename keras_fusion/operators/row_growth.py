"""Growth of tables and heads by rows, with the layout of what is added."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.architecture.outer_sizes import Holder
from keras_fusion.architecture.parents import check_parent
from keras_fusion.errors import FusionError, is_integer, is_names, require
from keras_fusion.layout.axes import Axis
from keras_fusion.models import probe as probes
from keras_fusion.operators import arguments, resized
from keras_fusion.operators.base import GrowthOperator
from keras_fusion.operators.plan import Plan
from keras_fusion.values.new_rows import RowsFiller


class RowGrowth(GrowthOperator):
    """A growth of tables and heads by rows.

    Args:
        size: int or `None`. The size after the growth.
        like: for each new row those whose mean it is, or `None`.
        rows: array of new rows, or `None`.
        only: names of the layers that grow, or `None`.
        probe: batch on which the growth is tried.
    """

    # The name of the argument with the size, and of that with what rows are like.
    _names = ("size", "like")
    _axis = 0  # of a matrix that takes `rows`

    def __init__(self, size, like, rows, only, probe):
        name, like_name = self._names
        require(
            size is None or is_integer(size, 1),
            name,
            size,
            "a positive integer, or None",
        )
        listed = [only] if isinstance(only, str) else only
        good = listed is None or is_names(listed)
        require(good, "only", only, "a name, a list of names, or None")
        if like is not None and rows is not None:
            raise FusionError(
                f"`rows` says what the new rows are, and so does `{like_name}`. Leave one "
                "of the two out."
            )
        self._like = None if like is None else _numbers(like_name, like)
        self.rows = None if rows is None else _checked_rows(rows)
        given = self._like if self.rows is None else self.rows
        self._count = None if given is None else len(given)
        if size is None and given is None:
            raise FusionError(
                f"Nothing says how large it becomes. Give `{name}`, `{like_name}` or "
                "`rows`."
            )
        self._size = None if size is None else int(size)
        self._only = None if listed is None else list(listed)
        self.only, self.probe = only, probe

    def plan(self, model: keras.Model, seed: int | None = None) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        check_parent(0, model)
        with probes.given(self.probe):
            found = self._holders(model)
            old, new = found[0].size, self._new_size(model, found[0].size)
            _check_metrics(model, old)
            plan = _laid_out(model, found, new, arguments.chosen_seed(None, seed))
        rows = {} if self.rows is None else self._rows_by_layout(plan)
        like = None if self._like is None else tuple(map(tuple, self._like))
        return dataclasses.replace(plan, filler=RowsFiller(pieces=like, rows=rows))

    def check_built(self, model: keras.Model) -> None:
        """Refuses metrics that count by class, which the first batch has built."""
        with probes.given(self.probe):
            _check_metrics(model, self._holders(model)[0].size)

    def _holders(self, model: keras.Model) -> list[Holder]:
        raise NotImplementedError

    def _new_size(self, model: keras.Model, old: int) -> int:
        """The size after the growth, when all that is given agrees."""
        name, like_name = self._names
        new = self._size if self._count is None else old + self._count
        if self._size is not None and self._size != new:
            which = like_name if self.rows is None else "rows"
            raise FusionError(
                f"`{name}={self._size}` makes {self._size - old} new rows of {old} in "
                f"{model.name!r}, and `{which}` has {self._count}. Make them "
                f"agree, or leave `{name}` out."
            )
        if new is None or new <= old:
            raise FusionError(
                f"`{name}={new}`: {model.name!r} has {old} already. Name a larger number."
            )
        for place, own in enumerate(self._like or (), old):
            if max(own) >= place:
                raise FusionError(
                    f"`{like_name}` makes row {place} of {own}, where only rows below "
                    f"{place} are there. Name earlier ones."
                )
        return new

    def _rows_by_layout(self, plan: Plan) -> dict[int, np.ndarray]:
        """The given rows, for each matrix that takes them."""
        found, rows = {}, np.asarray(self.rows)
        for index, layout in enumerate(plan.layouts):
            place = self._axis % max(1, len(layout.axes))
            if len(layout.axes) != 2 or not layout.axes[place].grown:
                continue
            features = layout.axes[1 - place].size
            if rows.shape[1] != features:
                raise FusionError(
                    f"`rows` has rows of {rows.shape[1]} numbers, and those of "
                    f"{layout.address!r} have {features}."
                )
            found[index] = rows
        if not found:
            raise FusionError(
                "`rows` is for a matrix of two axes, and none grows. Leave it out."
            )
        return found

    def _told_size(self) -> str:
        """The size after the growth, or how many more, for the console."""
        if self._size is not None:
            return f"{self._size:,}"
        return f"{self._count} more"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        name, like_name = self._names
        return {
            name: self._size,
            like_name: self._like,
            "rows": None if self.rows is None else self.rows.tolist(),
            "only": self._only,
        }


def _numbers(name: str, like: Any) -> list[list[int]]:
    """For each new row the rows whose mean it is, as plain lists."""
    rows = [np.ravel(own).tolist() for own in like] if _is_list(like) else []
    good = rows and all(own and all(is_integer(n) for n in own) for own in rows)
    require(
        bool(good), name, like, "a list with a list of row numbers for each new row"
    )
    return rows


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _checked_rows(rows: Any) -> np.ndarray:
    try:
        found = np.asarray(rows, "float32")
    except (TypeError, ValueError):
        found = np.empty(0)
    good = found.ndim == 2 and found.size > 0 and bool(np.isfinite(found).all())
    require(good, "rows", rows, "an array of finite numbers, a row for each new one")
    return found


def _check_metrics(model: keras.Model, size: int) -> None:
    """Refuses metrics that count by class, whose state would not fit any more."""
    held = (m for x in model.metrics for m in getattr(x, "metrics", [x]))
    for metric in held:
        if _counts_thresholds(metric, size):
            continue
        if any(size in tuple(v.shape) for v in metric.variables):
            raise FusionError(
                f"The metric {metric.name!r} of {model.name!r} has a state for {size} "
                "classes or tokens, which cannot grow. Compile the model without it, and "
                "with a larger one after the growth."
            )


def _counts_thresholds(metric: keras.Metric, size: int) -> bool:
    """Whether a metric has so many thresholds, and no state by class."""
    config = metric.get_config()
    listed = config.get("thresholds")
    count = len(listed) if isinstance(listed, (list, tuple)) else None
    is_that = size in (config.get("num_thresholds"), count)
    return is_that and not config.get("multi_label", False)


def _laid_out(model: keras.Model, found: Sequence[Holder], new: int, seed: int) -> Plan:
    """Lays out the model with larger tables and heads, with a filler of means."""
    old = found[0].size
    overrides: dict[int, dict] = {}
    for holder in found:
        overrides.setdefault(id(holder.layer), {}).update(holder.entry(new))
    grown, layouts = resized.lay_out(
        model, overrides, (old, new), Axis(new, "out", (np.arange(old),)), seed=seed
    )
    if not any(layout.grown for layout in layouts):
        listed = ", ".join(holder.text for holder in found)
        raise FusionError(
            f"No weight grows with {listed}. Name other layers as `only`."
        )
    return Plan((model,), grown, layouts, RowsFiller(), True, True, extends=True)
