"""Old names of arguments, which are accepted with a warning for one version."""

import functools
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import ParamSpec, TypeVar

from keras_fusion.errors import FusionError
from keras_fusion.models.names import helpful

# Arguments of operators, by their names in files of version 0.1.0.
OLD_NAMES = {"noise": "noise_scale", "off_diagonal_scale": "noise_scale"}

P = ParamSpec("P")
R = TypeVar("R")


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that accepts arguments by their old names, with a `DeprecationWarning`.

    Others that the function does not have are refused, see `helpful`.

    Args:
        **names: the new name for each old one.

    Returns:
        The decorator.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = helpful(function)

        @functools.wraps(function)
        def accepting(*args: P.args, **kwargs: P.kwargs) -> R:
            old = {name: new for name, new in names.items() if name in kwargs}
            for name, new in old.items():
                if new in kwargs:
                    raise FusionError(
                        f"`{name}` is the old name of `{new}`. Received both: "
                        f"{name}={kwargs[name]!r}, {new}={kwargs[new]!r}."
                    )
                warnings.warn(
                    f"`{name}` is now called `{new}`; the next version will no longer "
                    "accept the old name.",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[new] = kwargs.pop(name)
            try:
                return known(*args, **kwargs)
            except FusionError as error:
                raise type(error)(_in_old_words(str(error), old)) from error

        return accepting

    return decorate


def _in_old_words(message: str, old: Mapping[str, str]) -> str:
    """A message about an argument, with the name that the caller has used."""
    for name, new in old.items():
        message = message.replace(f"`{new}`", f"`{name}`")
        message = message.replace(f"{new}=", f"{name}=")
    return message


def in_new_names(config: dict, accepted: Collection[str]) -> dict:
    """A config that an earlier version has saved, under the arguments' current names.

    Args:
        config: dict.
        accepted: the current names. What is not renamed to one of them stays: classes
            of users' own may use the old names.
    """

    def current(name: str) -> str:
        new = OLD_NAMES.get(name, name)
        return new if new in accepted and name not in accepted else name

    return {current(name): value for name, value in config.items()}
