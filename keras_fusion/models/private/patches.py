"""Attributes of Keras that are replaced while any thread needs it, and put back then."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

# `(owner, attribute, value)`
Replacements = list[tuple[Any, str, Any]]


class Patch:
    """Replacements that several threads may need at once.

    The first one makes them and the last one takes them back, so that none puts back what
    another has put in.

    Args:
        replacements: function that makes the replacements, from what is there before.
    """

    def __init__(self, replacements: Callable[[], Replacements]):
        self._replacements = replacements
        self._lock, self._users = threading.Lock(), 0
        self._before: list[tuple[Any, str, Any, bool]] = []

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Opens a scope in which the replacements are made."""
        with self._lock:
            if not self._users:
                self._apply()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._take_back()

    def _apply(self) -> None:
        for owner, name, value in self._replacements():
            own = vars(owner)
            self._before.append((owner, name, own.get(name), name in own))
            setattr(owner, name, value)

    def _take_back(self) -> None:
        while self._before:
            owner, name, value, was_own = self._before.pop()
            if was_own:
                setattr(owner, name, value)
            else:
                delattr(owner, name)  # It was inherited.
