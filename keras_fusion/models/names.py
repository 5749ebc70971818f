"""The names that users type: which the package shows, and what a mistyped one meant."""

import difflib
import functools
import inspect
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from keras_fusion.errors import UnknownArgumentError

P = ParamSpec("P")
R = TypeVar("R")


def public_names() -> list[str]:
    """The names that `dir(keras_fusion)` shows, without the rooms it consists of."""
    package = sys.modules[__name__.partition(".")[0]]
    return sorted([*package.__all__, "__version__"])


def helpful(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator that says which argument a mistyped one may have meant.

    Args:
        function: a function or constructor without `**kwargs`.

    Returns:
        The same, which raises `UnknownArgumentError` for arguments that it does not have.
    """
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise UnknownArgumentError(_unknown(function.__qualname__, name, known))
        return function(*args, **kwargs)

    return checked


def _unknown(function: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f" Did you mean `{near[0]}`?" if near else ""
    return (
        f"{function.removesuffix('.__init__')}() has no argument `{name}`.{meant} It has "
        f"{', '.join(known)}."
    )
