"""A progress bar, with the names of layers, for what takes more than a few seconds."""

import contextlib
import contextvars
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import keras

T = TypeVar("T")

# Seconds that pass before a bar appears.
PATIENCE = 3.0
# Seconds between two drawings, on a screen and in a log.
_INTERVALS = {True: 0.1, False: 10.0}
_NAME_WIDTH = 40
# When what is shown has begun; `None` where nothing is.
_BEGUN: contextvars.ContextVar[float | None] = contextvars.ContextVar(
    "begun", default=None
)


@contextlib.contextmanager
def shown(verbose: bool) -> Iterator[None]:
    """Opens a scope in which long loops over `steps` show a bar.

    Args:
        verbose: bool. Whether they do.
    """
    token = _BEGUN.set(time.perf_counter() if verbose else None)
    try:
        yield
    finally:
        _BEGUN.reset(token)


def steps(
    items: Sequence[T], what: str, name_of: Callable[[T], str]
) -> Iterator[tuple[int, T]]:
    """Yields `(index, item)` like `enumerate`, and shows how far it is.

    Args:
        items: what is worked on.
        what: string. What is done.
        name_of: function from an item to the name that the bar shows.
    """
    begun, bar, drawn = _BEGUN.get(), None, 0.0
    for index, item in enumerate(items):
        yield index, item
        now, is_last = time.perf_counter(), index + 1 == len(items)
        if begun is None or now - begun < PATIENCE:
            continue
        if bar is None:
            print(f"keras_fusion: {what}")
            bar = keras.utils.Progbar(len(items), unit_name="variable")
        if is_last or now - drawn >= _INTERVALS[_on_screen()]:
            drawn = now
            bar.update(index + 1)
            if not is_last:
                name = name_of(item)[-_NAME_WIDTH:]
                print(f"  {name:{_NAME_WIDTH}}", end="", flush=True)


def _on_screen() -> bool:
    """Whether what is printed can be overwritten, as `Progbar` finds out."""
    return "ipykernel" in sys.modules or sys.stdout.isatty()
