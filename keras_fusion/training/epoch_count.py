"""Counts epochs over several calls of `fit`, each of which counts from the first again."""

import weakref
from collections.abc import Callable

import keras


class EpochCount:
    """The epochs that one callback has seen of one model.

    A `fit` that begins before the last one has ended begins anew and adds to it; one with
    an `initial_epoch` goes on where that says.
    """

    def __init__(self):
        self._model: Callable[[], keras.Model | None] = lambda: None
        self._done = self._before = 0
        self._resumed: int | None = None

    def continues(self, model: keras.Model) -> bool:
        """Whether the callback has trained this model before; begins anew if not."""
        if self._model() is model:
            return True
        self._model, self._done, self._before = weakref.ref(model), 0, 0
        return False

    def begin(self, epoch: int) -> None:
        """Takes note of the first epoch of a `fit`, counted from 0."""
        before = max(0, self._done - epoch)
        self._before = before if self._resumed is None else self._resumed
        self._resumed = None

    def end(self, epoch: int) -> None:
        """Takes note of the end of an epoch, counted from 0."""
        self._done = self.total(epoch + 1)

    @property
    def before(self) -> int:
        """The epochs of the calls of `fit` before this one."""
        return self._before

    def resume(self, before: int | None) -> None:
        """Takes note of how many those are in a run that the next `fit` resumes."""
        self._resumed = before

    def total(self, epochs: int) -> int:
        """The epochs over all calls of `fit`, from those of this one."""
        return self._before + epochs
