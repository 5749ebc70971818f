"""A callback that measures the dynamics of a training run around its growths."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import keras

from keras_fusion import graft
from keras_fusion.analysis.dynamics import measures
from keras_fusion.analysis.dynamics.bracket import Bracket, Field, Phases
from keras_fusion.analysis.dynamics.derivatives import Derivatives, dot, norm
from keras_fusion.errors import FusionError
from keras_fusion.layout.parent_blocks import Blocks
from keras_fusion.models import host, private
from keras_fusion.training.grow_model import GrowModel


@dataclasses.dataclass(frozen=True)
class Record:
    """The measurements at one moment; `nan` before the first growth where one is needed.

    Args:
        step: int. Optimizer steps done.
        growths: int. Growths done.
        parameters: int. Number of parameters of the model.
        loss: float. Loss on the monitor's batch, in inference mode.
        gradient_norm: float.
        implicit_regularization: float. h/4 |gradient|^2 at the current learning rate h.
        bracket_norm: float. Norm of the Lie bracket of the small and the grown network's
            fields.
        bracket_alignment: float. Cosine of the bracket and the descent direction: zero up
            to rounding (docs/dynamics.md).
        bracket_effect: float. The bracket's effect on the loss over one step of each
            phase.
        block_share: float. The fraction of the squared gradient that belongs to the
            parents' own parameters.
        block_alignment: float. The mean cosine between two blocks' gradients.
        asymmetry: float. How far the blocks' weights have diverged, from 0 to about 1.
        activation_jump: float. The largest factor by which the last growth changed the
            root mean square of a layer's output; `nan` except right after a growth.

    Example: see `DynamicsMonitor`, which makes records.

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

    def to_dict(self) -> dict[str, float]:
        """The record as plain data."""
        return dataclasses.asdict(self)


_COUNTS = ("step", "growths", "parameters")
_MEASURES = [f.name for f in dataclasses.fields(Record) if f.name not in _COUNTS]


class DynamicsMonitor(keras.callbacks.Callback):
    """Measures the effect of growth on the training dynamics, on one batch.

    It measures right before and right after each growth, and at the requested steps. The
    last values go into the logs of each epoch as `dynamics_...`, and so into the
    `History`; also into those of Keras's `TensorBoard` and `CSVLogger` if they come after
    it in the list of callbacks. A measurement costs a few gradients of the batch
    (`python -m experiments.dynamics_cost`).

    Args:
        growth: the `GrowModel` or `DeepFusion` callback of the run.
        x: inputs of the batch to measure on, in the form that `fit` takes.
        y: its targets.
        sample_weight: its sample weights, if any.
        every: int. Steps between measurements. By default there are none but those around
            a growth.
        at_steps: collection of ints. Further optimizer steps after which to measure,
            counted from 1.
        log_dir: string. A folder to which TensorBoard scalars are written at the steps
            of the measurements, if given.

    Attributes:
        records: list of `Record`, in the order of the measurements.

    Raises:
        FusionError: for invalid arguments.

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
        growth: GrowModel,
        x: Any,
        y: Any,
        sample_weight: Any = None,
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
        self.records: list[Record] = []
        self._writer: Any = None
        self._forget()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Subscribes to the growths of the growth callback."""
        if self not in self.growth.watchers:
            self.growth.watchers.append(self)
        self._forget()
        self._writer = None
        if self.log_dir is not None:
            import tensorflow as tf

            self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the step count."""
        self._batch = -1
        self._step = graft.steps(graft.leaves(self._trained().optimizer)[0])

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Measures at the requested steps."""
        before, self._batch = self._batch, batch
        steps = range(self._step + 1, self._step + batch - before + 1)
        self._step = steps[-1]
        if any(
            (self.every and s % self.every == 0) or s in self.at_steps for s in steps
        ):
            self.measure()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Puts the last values into the logs."""
        if logs is not None:
            last = self.records[-1].to_dict() if self.records else {}
            logs.update({f"dynamics_{k}": last.get(k, math.nan) for k in _MEASURES})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Releases the model and TensorBoard's file."""
        self.growth.watchers.remove(self)
        self._forget()
        if self._writer is not None:
            self._writer.close()

    def before_growth(self, growth: GrowModel) -> None:
        """Measures before a growth; called by the growth callback."""
        self.measure()
        self._activations = measures.activation_rms(self._trained(), self.batch[0])

    def after_growth(self, growth: GrowModel) -> None:
        """Measures after a growth; called by the growth callback."""
        before = self._activations
        self._forget()
        after = measures.activation_rms(self._trained(), self.batch[0])
        self.measure(activation_jump=measures.activation_jump(before, after))

    def _forget(self) -> None:
        self._analysis: Bracket | Derivatives | None = None
        self._activations: dict[str, float] = {}

    def _trained(self) -> Any:
        """The model, which Keras sets when `fit()` begins."""
        return self.model

    def measure(self, **known: float) -> Record:
        """Measures now.

        Args:
            **known: values of the `Record` that were measured elsewhere.

        Returns:
            The `Record`, which is also added to `records`.
        """
        model, blocks = self._trained(), self.growth.blocks
        private.sync(model)
        leaf = graft.leaves(model.optimizer)[0]
        rate = float(host.to_numpy(leaf.learning_rate))
        if self._analysis is None and blocks is not None:
            self._analysis = Bracket(model, blocks.masks())
        elif self._analysis is None:
            self._analysis = Derivatives(model)
        found = self._analysis(*self.batch)
        square = dot(found.gradient, found.gradient)
        if blocks is not None and isinstance(found, Field):
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

    def _write(self, record: Record) -> None:
        if self._writer is None:
            return
        import tensorflow as tf

        with self._writer.as_default():
            for name in _MEASURES:
                value = getattr(record, name)
                if not math.isnan(value):
                    tf.summary.scalar(f"dynamics/{name}", value, step=record.step)


def _of_the_field(
    field: Field, blocks: Blocks, model: keras.Model, rate: float
) -> dict[str, float]:
    """The measurements of a grown model's field."""
    gradients = blocks.split(list(field.gradient))
    weights = blocks.split([host.to_numpy(v) for v in model.trainable_variables])
    own = norm([a * g for a, g in zip(field.small, field.gradient, strict=True)])
    whole = norm(field.gradient)
    return {
        "bracket_norm": field.bracket_norm,
        "bracket_alignment": field.alignment,
        "bracket_effect": field.bracket_effect(Phases(1, rate, 1, rate)),
        "block_share": (own / whole) ** 2 if whole else math.nan,
        "block_alignment": measures.block_alignment(gradients),
        "asymmetry": measures.asymmetry(weights),
    }
