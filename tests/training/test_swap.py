"""A growth that fails leaves the live model training exactly as before."""

import dataclasses

import keras
import numpy as np
import pytest
from models import data_for, functional, loss, numpy, values

import keras_fusion
from keras_fusion import DeepFusion, FusionOperator, GrowthError

pytestmark = pytest.mark.core


@dataclasses.dataclass(frozen=True)
class Broken(keras_fusion.Filler):
    """A filler that goes wrong at a chosen place."""

    filler: keras_fusion.Filler
    place: str
    error: BaseException

    def value(self, index, layout, arrays):
        if self.place == "filling":
            raise self.error
        return self.filler.value(index, layout, arrays)

    def moment(self, slot, layout, arrays, copies):
        if self.place == "optimizer":
            raise self.error
        return self.filler.moment(slot, layout, arrays, copies)


class Operator(FusionOperator):
    """Self-fusion that goes wrong at a chosen place, but not in the first check."""

    def __init__(self, place, error):
        super().__init__(seed=0)
        self.place, self.error, self.calls = place, error, 0

    def plan(self, model, seed=None):
        self.calls += 1
        plan = super().plan(model, seed)
        if self.calls == 1:
            return plan
        if self.place == "building":
            raise self.error
        if self.place == "swapping":
            model.make_train_function = self._raise
        filler = Broken(plan.filler, self.place, self.error)
        return dataclasses.replace(plan, filler=filler)

    def _raise(self, **kwargs):
        raise self.error


class Tries(DeepFusion):
    """Grows after each step, catches what goes wrong, and looks at the model."""

    def __init__(self, operator):
        super().__init__(at_step=1, verbose=0)
        self.operator, self.caught = operator, []

    def _maybe_grow(self, logs):
        pass

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        state = values(self.model), [numpy(v) for v in self.model.optimizer.variables]
        layers, optimizer = list(self.model.layers), self.model.optimizer
        try:
            self.grow()
        except (GrowthError, KeyboardInterrupt) as error:
            self.caught.append(error)
        vars(self.model).pop("make_train_function", None)
        assert optimizer is self.model.optimizer
        assert all(a is b for a, b in zip(layers, self.model.layers, strict=True))
        now = values(self.model), [numpy(v) for v in optimizer.variables]
        for before, after in zip(state, now, strict=True):
            for a, b in zip(before, after, strict=True):
                np.testing.assert_array_equal(a, b)


def run(*callbacks):
    model = functional()
    model.compile(keras.optimizers.Adam(0.01), loss())
    x, y = data_for("functional")
    history = model.fit(
        x,
        y,
        batch_size=8,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        validation_data=(x, y),
    )
    return history.history, values(model)


@pytest.mark.core("filling", "swapping")
@pytest.mark.parametrize("place", ["building", "filling", "optimizer", "swapping"])
def test_failure_changes_nothing(place):
    expected_history, expected_values = run()
    tries = Tries(Operator(place, RuntimeError(place)))
    history, weights = run(tries)
    assert len(tries.caught) == 8 and tries.events == []
    assert all("trains on as it was" in str(error) for error in tries.caught)
    assert history == expected_history
    for a, b in zip(expected_values, weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_interrupt_changes_nothing():
    expected_history, _ = run()
    tries = Tries(Operator("filling", KeyboardInterrupt()))
    history, _ = run(tries)
    assert len(tries.caught) == 8 and history == expected_history
