"""Old names of arguments, which one version accepts with a warning."""

import functools
import warnings
from collections.abc import Callable

from keras_fusion.errors import FusionError


def renamed(**names: str) -> Callable[[Callable], Callable]:
    """Decorator that accepts arguments by their old names, with a `DeprecationWarning`.

    Args:
        **names: the new name by each old one.

    Returns:
        The decorator.
    """

    def decorate(function):
        @functools.wraps(function)
        def accepting(*args, **kwargs):
            old = {name: new for name, new in names.items() if name in kwargs}
            for name, new in old.items():
                if new in kwargs:
                    raise FusionError(
                        f"`{name}` is the old name of `{new}`. Received both: "
                        f"{name}={kwargs[name]!r}, {new}={kwargs[new]!r}."
                    )
                warnings.warn(
                    f"`{name}` is now called `{new}`; the old name will go in the next "
                    "version.",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[new] = kwargs.pop(name)
            try:
                return function(*args, **kwargs)
            except FusionError as error:
                raise type(error)(_in_old_words(str(error), old)) from error

        return accepting

    return decorate


def _in_old_words(message, old):
    """The message about an argument, by the name that the caller has given."""
    for name, new in old.items():
        message = message.replace(f"`{new}`", f"`{name}`")
        message = message.replace(f"{new}=", f"{name}=")
    return message


def in_new_names(config: dict, names: dict[str, str]) -> dict:
    """A config that an earlier version has saved, with the arguments' names of today."""
    return {names.get(name, name): value for name, value in config.items()}
