"""Which callbacks change a model in training, and what they have changed so far."""

import weakref

import keras

from keras_fusion.training import swap
from keras_fusion.training.record import STOCK_NORMS, Change, check_shapes, shapes_of


class Member(keras.callbacks.Callback):
    """Base class of callbacks that change the live model, and can do it again."""

    def set_model(self, model):
        """Takes part in the run."""
        super().set_model(model)
        of(model).join(self)

    def script(self) -> dict:
        """What must be equal in a script that takes the run up again, as plain data."""
        raise NotImplementedError

    def do_again(self, change: Change) -> None:
        """Does a change on record again on the live model; its weights are loaded later.

        Args:
            change: `Change`.

        Raises:
            FusionError: if the model would become another one; nothing has changed.
        """
        prepared = self.prepare_again(change)
        given = shapes_of(prepared.plan.fused)
        check_shapes(change.after, given, f"The change at step {change.step} on record")
        swap.put_in_place(self.model, prepared)
        self.done_again(change, prepared)

    def prepare_again(self, change: Change) -> swap.Prepared:
        """Prepares a change of the live model, whose weights will be loaded."""
        return swap.prepare_stock_norms(self.model)

    def done_again(self, change: Change, prepared: swap.Prepared) -> None:
        """Called when the live model has been changed again."""

    def take_up(self, changes: list[Change]) -> None:
        """Goes on as the callback that has made, or seen, these changes."""

    def before_change(self, author, change: Change) -> None:
        """Called before a member changes the model; raises if that must not happen."""

    def after_change(self, author, change: Change) -> None:
        """Called when a member has changed the model."""

    def get_progress(self) -> dict:
        """What a backup must hold beside the weights and changes, as plain data."""
        return {}

    def set_progress(self, progress: dict) -> None:
        """Goes on from what `get_progress` gave, when the first epoch begins."""

    def is_noted(self, author, change: Change) -> bool:
        """Whether a change is this callback's own, or one that any may do again."""
        return author is self or change.kind == STOCK_NORMS


class Run:
    """The training of one model object, over all calls of `fit`.

    Attributes:
        changes: list of `(callback or None, Change)`, in order; without the callback
            if it is no longer there.
    """

    def __init__(self):
        self._members = []
        self._changes = []

    def join(self, callback: keras.callbacks.Callback) -> None:
        """Takes a callback in, once."""
        if callback not in self.members:
            self._members.append(weakref.ref(callback))

    @property
    def members(self) -> list:
        """All callbacks that were given to a `fit` of the model and still live."""
        found = [reference() for reference in self._members]
        return [callback for callback in found if callback is not None]

    def of_fit(self, callback: keras.callbacks.Callback) -> list:
        """The members that take part in the same call of `fit`, in its order."""
        # Keras gives all callbacks of a fit the one dict.
        return [m for m in self.members if m.params is callback.params]

    @property
    def changes(self) -> list[tuple]:
        """The changes with their callbacks."""
        return [(author and author(), change) for author, change in self._changes]

    @changes.setter
    def changes(self, pairs):
        self._changes = [(a and weakref.ref(a), change) for a, change in pairs]

    def announce(self, author, change: Change) -> None:
        """Tells the callbacks of the same `fit` of a change that is about to happen.

        Args:
            author: the callback that changes the model.
            change: `Change`.

        Raises:
            GrowthError: if the change must not happen.
        """
        for member in self.of_fit(author):
            member.before_change(author, change)

    def changed(self, author, change: Change) -> None:
        """Tells them that it has happened."""
        self.changes = [*self.changes, (author, change)]
        for member in self.of_fit(author):
            member.after_change(author, change)


# A Run holds no reference to its model, so that the model can be freed.
_RUNS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def of(model: keras.Model) -> Run:
    """The run of a model."""
    return _RUNS.setdefault(model, Run())
