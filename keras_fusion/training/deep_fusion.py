"""`DeepFusion`: growth inside `model.fit()` by fusion, in one line."""

import os
from collections.abc import Callable
from typing import Any

import keras

from keras_fusion.errors import FusionError
from keras_fusion.models.renamed import renamed
from keras_fusion.operators.fusion import FusionOperator
from keras_fusion.training import options
from keras_fusion.training.grow_model import GrowModel
from keras_fusion.training.schedules import AtEpoch, AtStep, GrowthSchedule


@keras.saving.register_keras_serializable(package="keras_fusion")
class DeepFusion(GrowModel):
    """Deep Fusion in one line: fuses the model in training, inside `model.fit()`.

    Give exactly one of `at_step`, `at_epoch` and `schedule`. With `partners` the model
    is fused with other trained models of its architecture; without, with itself.

    Args:
        at_step: int or increasing list of ints. Optimizer steps after which to grow,
            counted from 1.
        at_epoch: int or increasing list of ints. Epochs after which to grow, counted
            from 1.
        schedule: `GrowthSchedule`, e.g. `OnPlateau("val_loss", patience=3)`.
        partners: list of K-1 models or paths of `.keras` files; `None` for
            self-fusion.
        factor: number above 1. How many times as wide a self-fusion makes the model, see
            `fuse`. Defaults to 2.
        off_diagonal: `"zeros"`, `"random"` or `"paired"`, see `fuse`. Defaults to
            `"paired"` in a self-fusion and to `"zeros"` with partners.
        noise_scale: float, see `fuse`. Defaults to 0.25.
        into: model or function that builds one, see `fuse`.
        norms: `"auto"`, `"block"`, `"calibrated"` (measured on `probe`) or `"joint"`, see
            `fuse`. Defaults to `"auto"`.
        only: which widths of a self-fusion grow, `"feed_forward"`, `"heads"`,
            `"residual"`, or names of layers, see `fuse`. Defaults to all.
        to: dict of the sizes that some widths are to have, or the number of parameters
            of the whole (`1.5e9`), in place of `factor`, see `fuse`.
        seed: int. Seed of the off-diagonal noise. Defaults to one that is drawn.
        optimizer_state: `"carry"` fuses the optimizer's slots too; `"reset"` starts them
            from zero, see `GrowModel`. Defaults to `"carry"`.
        learning_rate_factor: float, or function that measures it. Multiplies the
            learning rate from the growth on, see `GrowModel`. Defaults to 1.
        learning_rate_multipliers: `"width"` gives each weight a learning rate of its
            own, see `GrowModel`. Defaults to `None`.
        rewarmup_steps: int. Steps over which the learning rate rises again from 0
            after a growth. Defaults to 0.
        probe: batch in the structure of the model's inputs, on which the change of the
            function is measured, and the norms with `norms="calibrated"`. By default a
            small random one is made.
        tolerance: float. The largest change of the outputs, relative to their largest
            value, at which a growth that should be exact is accepted, see `GrowModel`.
        verbose: int. 1 prints one line per growth, 0 prints nothing. Defaults to 1.
        record: path of a file in which the growths are recorded, see `GrowModel`.
            Defaults to `None`.

    Raises:
        FusionError: immediately, for invalid arguments; on the first batch at the
            latest, for a growth that is not possible.

    Example:

    >>> import keras, keras_fusion, numpy as np
    >>> def build():
    ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    ...     model.add(keras.layers.Dense(1))
    ...     return model
    >>> model, other = build(), build()
    >>> x = np.ones((32, 4), "float32")
    >>> for parent in (model, other):  # trained apart
    ...     parent.compile("adam", "mse")
    ...     _ = parent.fit(x, x[:, :1], verbose=0)
    >>> grow = keras_fusion.DeepFusion(at_step=3, partners=[other], verbose=0)
    >>> _ = model.fit(x, x[:, :1], batch_size=8, verbose=0, callbacks=[grow])
    >>> model.layers[0].units
    16

    Source: Mazzawi et al., ICML 2024.
    """

    @renamed(off_diagonal_scale="noise_scale")
    def __init__(
        self,
        *,
        at_step: int | list[int] | None = None,
        at_epoch: int | list[int] | None = None,
        schedule: GrowthSchedule | None = None,
        partners: list | None = None,
        factor: float = 2,
        off_diagonal: str | None = None,
        noise_scale: float = 0.25,
        into: Callable[[], keras.Model] | keras.Model | None = None,
        norms: str = "auto",
        only: str | list[str] | None = None,
        to: dict[str, int] | float | None = None,
        seed: int | None = None,
        optimizer_state: str = "carry",
        learning_rate_factor: float | Callable = 1.0,
        learning_rate_multipliers: str | None = None,
        rewarmup_steps: int = 0,
        probe: Any = None,
        tolerance: float | None = None,
        verbose: int = 1,
        record: str | os.PathLike | None = None,
    ):
        super().__init__(
            FusionOperator(
                partners=partners,
                factor=factor,
                off_diagonal=off_diagonal,
                noise_scale=noise_scale,
                into=into,
                seed=seed,
                norms=norms,
                only=only,
                to=to,
                probe=probe,
            ),
            _one_schedule(at_step, at_epoch, schedule),
            optimizer_state=optimizer_state,
            learning_rate_factor=learning_rate_factor,
            learning_rate_multipliers=learning_rate_multipliers,
            rewarmup_steps=rewarmup_steps,
            probe=probe,
            tolerance=tolerance,
            verbose=verbose,
            record=record,
        )

    def get_config(self) -> dict:
        """The constructor's arguments, serialized."""
        config = super().get_config()
        del config["operator"]
        return config | self.operator.get_config()


def _one_schedule(
    at_step: int | list[int] | None,
    at_epoch: int | list[int] | None,
    schedule: GrowthSchedule | None,
) -> GrowthSchedule:
    given = {"at_step": at_step, "at_epoch": at_epoch, "schedule": schedule}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise FusionError(
            "Give exactly one of `at_step`, `at_epoch` and `schedule`. Received: "
            f"{given or 'none of them'}."
        )
    if schedule is not None:
        return schedule
    name, value = next(iter(given.items()))
    options.positive_integers(name, value)
    listed = AtStep(value) if at_step is not None else AtEpoch(value)
    listed.argument = name
    return listed
