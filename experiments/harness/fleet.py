"""Many small models of one size that train at the same time, on one accelerator.

A small model leaves an accelerator idle: its kernels end before the next one is launched.
So the models of a fleet are one program, vectorized over lanes. Each lane is a training of
its own, with its own values, data, learning rate, weight decay and end. When one ends, the
next takes its lane. The steps are Keras's: the model's loss, and its optimizer's update.

It needs the JAX backend, and a decoder's task (next tokens).
"""

import dataclasses
import functools
import math
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from experiments.harness.graph import ALONE
from experiments.harness.study import Size
from experiments.harness.tasks import Task

CHUNK = 128  # steps in one call
FEWER = 4  # a call for this fraction of the lanes is compiled, too
VALIDATION_ROWS = 256  # in a batch, at most

# Making a model of a class of keras-hub's sets the bases of the class anew, which no other
# thread may be looking an attribute up in.
_ALONE = threading.Lock()


class State(NamedTuple):
    """What training changes: three tuples of arrays.

    Attributes:
        trainable: values of the trainable variables.
        others: those of the other variables.
        optimizer: those of the optimizer's variables.
    """

    trainable: tuple
    others: tuple
    optimizer: tuple


@dataclasses.dataclass
class Stretch:
    """Steps of one training, at a constant rate or at one that falls to zero.

    Args:
        task: `Task`, with the text's limit and the warm-up.
        state: `State` before them.
        seed: int. Of the data.
        begin: int. The step before the first.
        end: int. The last step.
        rate: float. The constant learning rate.
        fall: tuple of two steps between which it falls to zero, or `None`.
        alone: dict with values of `ALONE`.
        tag: anything, for who asked.
        losses: list of pairs of a step and the mean training loss up to it.
    """

    task: Task
    state: State
    seed: int
    begin: int
    end: int
    rate: float
    fall: tuple[int, int] | None
    alone: dict
    tag: Any = None
    losses: list = dataclasses.field(default_factory=list)


class Text(NamedTuple):
    """A text on the accelerator, shared by the fleets.

    Attributes:
        tokens: array of all training tokens.
        validation: integer array of shape `(batches, rows, row_length)`.
    """

    tokens: Any
    validation: Any

    @classmethod
    def of(cls, task: Task) -> "Text":
        """The text of a task."""
        rows = task.validation_rows()
        size = math.gcd(len(rows), VALIDATION_ROWS)
        small = task.tokens.vocabulary.size <= 2**15
        tokens = np.concatenate(task.rows[0].streams)
        return cls(
            jnp.asarray(tokens.astype("int16" if small else "int32")),
            jnp.asarray(rows.reshape(-1, size, rows.shape[1])),
        )


class Fleet:
    """Lanes for models of one size.

    Args:
        task: `Task` of a decoder.
        size: `Size`.
        lanes: int.
        text: `Text`.

    Attributes:
        seconds: float. What it has trained for so far.
        steps: int. Of all lanes, in this time.
    """

    def __init__(self, task: Task, size: Size, lanes: int, text: Text):
        self.task, self.size, self.lanes, self.text = task, size, lanes, text
        with _ALONE:
            self.model = task.compiled(size, 0, 1e-3)
            self.model.optimizer.build(self.model.trainable_variables)
        self.stretches: list[Stretch | None] = [None] * lanes
        self.waiting: list[tuple[Any, Stretch]] = []
        self._lane = np.zeros((lanes, 8), "float32")
        self._states = None
        self._run: dict[int, Any] = {}
        self.seconds, self.steps = 0.0, 0

    def _count(self, wanted):
        """The lanes of the smallest compiled call that has room for so many."""
        return min(c for c in [*self._run, self.lanes] if c >= min(wanted, self.lanes))

    # -- the program ------------------------------------------------------------------

    def _loss(self, trainable, others, rows):
        tokens = rows[:, :-1].astype("int32")
        features = {"token_ids": tokens, "padding_mask": jnp.ones_like(tokens)}
        logits, others = self.model.stateless_call(
            trainable, others, features, training=True
        )
        losses = keras.ops.sparse_categorical_crossentropy(
            rows[:, 1:].astype("int32"), logits, from_logits=True
        )
        return jnp.mean(losses), others

    def _step(self, state, lane, starts):
        """One step of one lane; nothing changes once its end is reached."""
        step, end, rate, warmup, fall_from, fall_to, decay, beta_2 = lane
        places = starts[:, None] + jnp.arange(self.task.row_length)
        gradient = jax.value_and_grad(self._loss, has_aux=True)
        (loss, others), gradients = gradient(
            list(state.trainable), list(state.others), self.text.tokens[places]
        )
        share = jnp.minimum(
            (step + 1) / warmup, (fall_to - step) / (fall_to - fall_from)
        )
        rate = rate * jnp.clip(share, 0.0, 1.0)
        optimizer = self.model.optimizer
        slots = list(state.optimizer)
        slots[self._rate_index] = rate
        kept = optimizer.weight_decay, optimizer.beta_2
        optimizer.weight_decay, optimizer.beta_2 = decay, beta_2
        trainable, slots = optimizer.stateless_apply(
            slots, gradients, list(state.trainable)
        )
        optimizer.weight_decay, optimizer.beta_2 = kept
        new = State(tuple(trainable), tuple(others), tuple(slots))
        active = step < end
        state = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, state)
        return state, lane.at[0].add(active * 1.0), jnp.where(active, loss, 0.0)

    @functools.cached_property
    def _rate_index(self):
        rate = self.model.optimizer._learning_rate
        return [v is rate for v in self.model.optimizer.variables].index(True)

    def _chunk(self, states, places, lanes, starts):
        """Some steps of the lanes at some places; all others wait."""

        def body(carry, starts):
            states, lanes = carry
            states, lanes, losses = jax.vmap(self._step)(states, lanes, starts)
            return (states, lanes), losses

        some = jax.tree.map(lambda all_: all_[places], states)
        (some, _), losses = jax.lax.scan(body, (some, lanes), starts)
        return jax.tree.map(lambda a, b: a.at[places].set(b), states, some), losses

    def _validation_loss(self, trainable, others):
        def of_batch(rows):
            return self._loss(list(trainable), list(others), rows)[0]

        return jnp.mean(jax.lax.map(of_batch, self.text.validation))

    def compile(self) -> "Fleet":
        """Compiles the program, which takes most of a minute; for a thread."""
        one, states = self.shapes(), self._stacked()
        self._compile_call(self.lanes)
        with _ALONE:
            validate = jax.jit(self._validation_loss)
            validate = validate.lower(one.trainable, one.others)
        self._validate = validate.compile()
        self._put = (
            jax.jit(_put, donate_argnums=0)
            .lower(states, one, jax.ShapeDtypeStruct((), "int32"))
            .compile()
        )
        self._get = (
            jax.jit(_get).lower(states, jax.ShapeDtypeStruct((), "int32")).compile()
        )
        return self

    def compile_fewer(self) -> None:
        """Compiles a call for a part of the lanes, for when few train; for a thread."""
        self._compile_call(max(self.lanes // FEWER, 1))

    def _compile_call(self, count):
        places = jax.ShapeDtypeStruct((count,), "int32")
        lanes = jax.ShapeDtypeStruct((count, self._lane.shape[1]), "float32")
        shape = CHUNK, count, self.task.settings.batch_size
        starts = jax.ShapeDtypeStruct(shape, "int32")
        chunk = jax.jit(self._chunk, donate_argnums=0)
        with _ALONE:  # A step sets the optimizer's settings while it is traced.
            lowered = chunk.lower(self._stacked(), places, lanes, starts)
        self._run[count] = lowered.compile()

    def _stacked(self):
        def stacked(s):
            return jax.ShapeDtypeStruct((self.lanes, *s.shape), s.dtype)

        return jax.tree.map(stacked, self.shapes())

    def shapes(self) -> State:
        """Shapes and dtypes of the state of one model."""
        groups = (
            self.model.trainable_variables,
            self.model.non_trainable_variables,
            self.model.optimizer.variables,
        )
        return State(
            *(
                tuple(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in group)
                for group in groups
            )
        )

    # -- running it -------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.waiting) or any(s is not None for s in self.stretches)

    @property
    def urgency(self) -> float:
        """The lowest priority of what is trained or waits."""
        training = [s.tag.priority for s in self.stretches if s is not None]
        return min([*training, *(s.tag.priority for _, s in self.waiting[:1])])

    @property
    def fullness(self) -> float:
        """The share of a call's lanes that would train, now."""
        training = sum(stretch is not None for stretch in self.stretches)
        wanted = min(training + len(self.waiting), self.lanes)
        return wanted / self._count(wanted)

    def __str__(self):
        """The fleet's size, how full it is, and how long a lane's step took so far."""
        full = sum(stretch is not None for stretch in self.stretches)
        each = 1e3 * self.seconds / max(self.steps, 1)
        return (
            f"{self.size}: {full} of {self.lanes} lanes, {len(self.waiting)} wait, "
            f"{self.steps} steps of {each:.2f} ms"
        )

    def ask(self, priority: Any, stretch: Stretch) -> None:
        """Adds a training to those that wait for a lane; the lowest priority is first."""
        self.waiting.append((priority, stretch))
        self.waiting.sort(key=lambda pair: pair[0])

    def on_device(self, state) -> State:
        """A state, given as a `State` or as tuples of arrays, on the accelerator.

        Raises:
            ValueError: if it is not of this fleet's size.
        """
        wanted = self.shapes()
        state = State(*map(tuple, state))
        found = jax.tree.map(lambda a: a.shape, state)
        if found != jax.tree.map(lambda s: s.shape, wanted):
            raise ValueError(f"A state does not fit the models of size {self.size}.")
        return jax.tree.map(lambda a, s: jnp.asarray(a, s.dtype), state, wanted)

    def validate(self, state) -> float:
        """The loss on the held-out text."""
        state = self.on_device(state)
        return float(self._validate(state.trainable, state.others))

    def advance(self) -> list[tuple[Stretch, State]]:
        """Trains a chunk of steps in all lanes.

        Returns:
            The stretches that have ended, each with its state.
        """
        started = time.monotonic()
        for number, stretch in enumerate(self.stretches):
            if stretch is None and self.waiting:
                self._load(number, self.waiting.pop(0)[1])
        # Those that train come first; the rest of the call's lanes are at their end.
        order = sorted(range(self.lanes), key=lambda n: self.stretches[n] is None)
        count = self._count(sum(stretch is not None for stretch in self.stretches))
        places = np.array(order[:count], "int32")
        began = self._lane[:, 0].copy()
        self._states, losses = self._run[count](
            self._states, places, self._lane[places], self._starts(places)
        )
        losses, ended = np.asarray(losses), []
        for column, number in enumerate(places):
            if (stretch := self.stretches[number]) is None:
                continue
            taken = int(min(CHUNK, stretch.end - began[number]))
            step = int(began[number]) + taken
            self._lane[number, 0] = step
            self.steps += taken
            stretch.losses.append((step, float(losses[:taken, column].mean())))
            if step == stretch.end:
                state = self._get(self._states, np.int32(number))
                ended.append((stretch, state))
                self.stretches[number] = None
        self.seconds += time.monotonic() - started
        return ended

    def _load(self, number, stretch):
        if self._states is None:
            shapes = self.shapes()
            self._states = jax.tree.map(
                lambda s: jnp.zeros((self.lanes, *s.shape), s.dtype), shapes
            )
        state = self.on_device(stretch.state)
        self._states = self._put(self._states, state, np.int32(number))
        fall = stretch.fall or (1e9, 2e9)
        alone = [stretch.alone[name] for name in ALONE]
        rate = stretch.rate, max(stretch.task.settings.warmup_steps, 1)
        self._lane[number] = [stretch.begin, stretch.end, *rate, *fall, *alone]
        self.stretches[number] = stretch

    def _starts(self, places):
        """Where the rows of each batch begin in the text."""
        shape = CHUNK, len(places), self.task.settings.batch_size
        starts = np.zeros(shape, "int32")
        for column, number in enumerate(places):
            if (stretch := self.stretches[number]) is not None:
                begin = int(self._lane[number, 0])
                end = min(begin + CHUNK, stretch.end)
                found = stretch.task.starts(stretch.seed, begin, end)
                starts[: end - begin, column] = found
        return starts


def _put(states, state, lane):
    return jax.tree.map(lambda all_, one: all_.at[lane].set(one), states, state)


def _get(states, lane):
    return jax.tree.map(lambda all_: all_[lane], states)
