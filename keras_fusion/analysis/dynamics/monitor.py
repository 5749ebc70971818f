"""A callback that measures the dynamics of a training run around its growths."""

import dataclasses
import math
from collections.abc import Collection

import keras

from keras_fusion import graft
from keras_fusion.analysis.dynamics import measures
from keras_fusion.analysis.dynamics.bracket import Bracket, Phases
from keras_fusion.analysis.dynamics.derivatives import Derivatives, dot, norm
from keras_fusion.errors import FusionError
from keras_fusion.models import private


@dataclasses.dataclass(frozen=True)
class Record:
    """What was measured at one moment; `nan` stands for what a small model has not.

    Args:
        step: int. Optimizer steps done.
        growths: int. Growths done.
        parameters: int. Of the model.
        loss: float. On the monitor's batch, in inference mode.
        gradient_norm: float.
        implicit_regularization: float. h/4 |gradient|^2 at the present learning rate h.
        bracket_norm: float. Of the Lie bracket of the small and the grown network's field.
        bracket_alignment: float. Its cosine with the descent direction: zero, but for
            rounding (docs/dynamics.md).
        bracket_effect: float. What it adds to the loss over one step of each phase.
        block_share: float. The share of the squared gradient that falls on the parents'
            own parameters.
        block_alignment: float. The mean cosine of two blocks' gradients.
        asymmetry: float. How far the blocks' weights have parted, from 0 to about 1.
        activation_jump: float. The largest factor by which the last growth changed the
            root mean square of a layer's output; `nan` but right after a growth.

    Example: see `DynamicsMonitor`, which makes them.

    >>> from keras_fusion.dynamics import Record
    >>> record = Record(
    ...     step=1, growths=0, parameters=9, loss=0.5, gradient_norm=2.0,
    ...     implicit_regularization=0.1,
    ... )
    >>> record.to_dict()["asymmetry"]
    nan
    """

    step: int
    growths: int
    parameters: int
    loss: float
    gradient_norm: float
    implicit_regularization: float
    bracket_norm: float = math.nan
    bracket_alignment: float = math.nan
    bracket_effect: float = math.nan
    block_share: float = math.nan
    block_alignment: float = math.nan
    asymmetry: float = math.nan
    activation_jump: float = math.nan

    def to_dict(self) -> dict:
        """The record as plain data."""
        return dataclasses.asdict(self)


_COUNTS = ("step", "growths", "parameters")
_MEASURES = [f.name for f in dataclasses.fields(Record) if f.name not in _COUNTS]


class DynamicsMonitor(keras.callbacks.Callback):
    """Measures what a growth does to the training dynamics, on one batch.

    It measures right before and right after each growth, and at the steps that are asked
    for. The last values go into the logs of each epoch as `dynamics_...`, and so into the
    `History`; into those of Keras's `TensorBoard` and `CSVLogger` too if they come after
    it in the list of callbacks. A measure costs a few gradients of the batch
    (`benchmarks/dynamics_cost.py`).

    Args:
        growth: the `GrowModel` or `DeepFusion` callback of the run.
        x: inputs of the batch to measure on, as `fit` takes them.
        y: its targets.
        sample_weight: its weights, if any.
        every: int. Steps from one measure to the next. Defaults to none but those around
            a growth.
        at_steps: collection of ints. Optimizer steps after which to measure as well,
            counted from 1.
        log_dir: string. A folder to which TensorBoard scalars are written at the steps
            of the measures, if given.

    Attributes:
        records: list of `Record`, in the order of the measures.

    Raises:
        FusionError: for arguments that cannot work.

    Example:

    >>> import keras, keras_fusion, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> model.compile("adam", "mse")
    >>> x = np.random.default_rng(0).standard_normal((64, 4)).astype("float32")
    >>> y = x[:, :1]
    >>> grow = keras_fusion.DeepFusion(at_step=4, verbose=0)
    >>> monitor = keras_fusion.dynamics.DynamicsMonitor(grow, x[:8], y[:8], every=2)
    >>> _ = model.fit(x, y, batch_size=8, verbose=0, callbacks=[monitor, grow])
    >>> [(record.step, record.growths) for record in monitor.records]
    [(2, 0), (4, 0), (4, 0), (4, 1), (6, 1), (8, 1)]
    """

    def __init__(
        self,
        growth,
        x,
        y,
        sample_weight=None,
        *,
        every: int | None = None,
        at_steps: Collection[int] = (),
        log_dir: str | None = None,
    ):
        super().__init__()
        if not hasattr(growth, "watchers"):
            raise FusionError(
                "`growth` must be the GrowModel or DeepFusion callback of the run. "
                f"Received: growth={growth!r}."
            )
        if every is not None and (not isinstance(every, int) or every < 1):
            raise FusionError(
                f"`every` must be a positive integer or None. Received: every={every!r}."
            )
        self.growth = growth
        self.batch = (x, y, sample_weight)
        self.every = every
        self.at_steps = frozenset(at_steps)
        self.log_dir = log_dir
        self.records = []

    def on_train_begin(self, logs=None):
        """Asks the growth callback to be told of its growths."""
        if self not in self.growth.watchers:
            self.growth.watchers.append(self)
        self._forget()
        self._writer = None
        if self.log_dir is not None:
            import tensorflow as tf

            self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_begin(self, epoch, logs=None):
        """Takes up the step count."""
        self._batch = -1
        self._step = graft.steps(graft.leaves(self.model.optimizer)[0])

    def on_train_batch_end(self, batch, logs=None):
        """Measures if it is time."""
        before, self._batch = self._batch, batch
        steps = range(self._step + 1, self._step + batch - before + 1)
        self._step = steps[-1]
        if any(
            (self.every and s % self.every == 0) or s in self.at_steps for s in steps
        ):
            self.measure()

    def on_epoch_end(self, epoch, logs=None):
        """Puts the last values into the logs."""
        if logs is not None:
            last = self.records[-1].to_dict() if self.records else {}
            logs.update({f"dynamics_{k}": last.get(k, math.nan) for k in _MEASURES})

    def on_train_end(self, logs=None):
        """Lets go of the model and of TensorBoard's file."""
        self.growth.watchers.remove(self)
        self._forget()
        if self._writer is not None:
            self._writer.close()

    def before_growth(self, growth) -> None:
        """Called by the growth callback."""
        self.measure()
        self._activations = measures.activation_rms(self.model, self.batch[0])

    def after_growth(self, growth) -> None:
        """Called by the growth callback."""
        before = self._activations
        self._forget()
        after = measures.activation_rms(self.model, self.batch[0])
        self.measure(activation_jump=measures.activation_jump(before, after))

    def _forget(self):
        self._analysis = self._activations = None

    def measure(self, **known) -> Record:
        """Measures now.

        Args:
            **known: values of the `Record` that were measured elsewhere.

        Returns:
            The `Record`, which is also added to `records`.
        """
        model, blocks = self.model, self.growth.blocks
        private.sync(model)
        leaf = graft.leaves(model.optimizer)[0]
        rate = float(keras.ops.convert_to_numpy(leaf.learning_rate))
        if self._analysis is None:
            grown = blocks is not None
            self._analysis = (
                Bracket(model, blocks.masks()) if grown else Derivatives(model)
            )
        found = self._analysis(*self.batch)
        square = dot(found.gradient, found.gradient)
        if blocks is not None:
            known |= _of_the_field(found, blocks, model, rate)
        record = Record(
            step=graft.steps(leaf),
            growths=len(self.growth.events),
            parameters=model.count_params(),
            loss=found.loss,
            gradient_norm=math.sqrt(square),
            implicit_regularization=rate / 4 * square,
            **known,
        )
        self.records.append(record)
        self._write(record)
        return record

    def _write(self, record):
        if self._writer is None:
            return
        import tensorflow as tf

        with self._writer.as_default():
            for name in _MEASURES:
                value = getattr(record, name)
                if not math.isnan(value):
                    tf.summary.scalar(f"dynamics/{name}", value, step=record.step)


def _of_the_field(field, blocks, model, rate):
    weights = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    own = norm([a * g for a, g in zip(field.small, field.gradient, strict=True)])
    whole = norm(field.gradient)
    return {
        "bracket_norm": field.bracket_norm,
        "bracket_alignment": field.alignment,
        "bracket_effect": field.bracket_effect(Phases(1, rate, 1, rate)),
        "block_share": (own / whole) ** 2 if whole else math.nan,
        "block_alignment": measures.block_alignment(blocks.split(field.gradient)),
        "asymmetry": measures.asymmetry(blocks.split(weights)),
    }
