"""What a run and the script that resumes it must share beside the callbacks.

The optimizers' options, the loss and the structure of the model; where these differ, the
saved state means something else, or is lost. The learning rate and the sizes of the data
may have been changed on purpose: a difference is told.
"""

import warnings
from typing import Any

import keras

from keras_fusion import graft
from keras_fusion.errors import FusionError, shortened
from keras_fusion.models import rules, tree
from keras_fusion.training import matching
from keras_fusion.training.learning_rate import rate_of
from keras_fusion.training.record import plain

# What is refused and what is told, by the keys of a description.
_REFUSED = ("optimizers", "loss", "loss_weights", "structure")
_TOLD = ("learning_rates", "data")
# Keys of configs that two builds of one model do not share.
_OWN = {"name", "seed", "build_config", "compile_config", "module", "layers"}
_OWN |= {"input_layers", "output_layers"}


def of(model: keras.Model, data: dict | None = None) -> dict:
    """Describes a model and its training, when training begins.

    Args:
        model: the compiled model.
        data: dict of the sizes of the data, where they are known.

    Returns:
        Plain data.
    """
    optimizers = graft.leaves(model.optimizer) if model.optimizer else []
    compiled = _compile_config(model)
    return plain(
        {
            "optimizers": [_options(optimizer) for optimizer in optimizers],
            "loss": compiled.get("loss"),
            "loss_weights": compiled.get("loss_weights"),
            "structure": {
                address or "model": _layer(layer) for address, layer in tree.walk(model)
            },
            "learning_rates": [_rate(optimizer) for optimizer in optimizers],
            "data": data or {},
        }
    )


def check(recorded: dict, given: dict, where: str, *, same_stage: bool = True) -> None:
    """Compares the descriptions of a run and of the script at hand.

    What either of them does not tell is not compared.

    Args:
        recorded: dict. That of the run.
        given: dict. That of the script.
        where: string. What was read, for the message.
        same_stage: bool. Whether both models have been through equally many growths.

    Raises:
        FusionError: naming each option that differs, with both values.
    """
    shared = [key for key in recorded if key in given]
    refused = [k for k in shared if k in _REFUSED and (same_stage or k != "structure")]
    matching.check_script(
        {key: recorded[key] for key in refused},
        {key: given[key] for key in refused},
        where,
    )
    _check_kinds_of_rates(recorded, given, where)
    for key in shared if same_stage else ():
        for line in matching.differing(recorded[key], given[key], key):
            if key in _TOLD and " None in " not in line and "None in this" not in line:
                what = "The run goes on, which is not as if it had been uninterrupted."
                if key == "learning_rates" and "class_name" not in line:
                    what = (
                        "The run goes on with the recorded one, which is a part of the "
                        "optimizer's state. Change it in a callback."
                    )
                warnings.warn(
                    f"{where} was made with another value: {line}. {what}", stacklevel=2
                )


def _check_kinds_of_rates(recorded: dict, given: dict, where: str) -> None:
    """Refuses a schedule in place of a number, and the reverse."""
    rates = [x.get("learning_rates") or [] for x in (recorded, given)]
    for i, (old, new) in enumerate(zip(*rates, strict=False)):
        if isinstance(old, (int, float)) != isinstance(new, (int, float)):
            raise FusionError(
                f"{where} is of another run, with another kind of learning rate for "
                f"optimizer {i}: {shortened(old)}, and {shortened(new)} in this script. "
                "One is a variable of the optimizer, the other a schedule, so its state "
                "does not fit. Compile with the kind that the run had, and change the "
                "rate in a callback."
            )


def _options(optimizer: keras.optimizers.Optimizer) -> dict:
    try:
        config = graft.options(optimizer)
    except NotImplementedError:
        config = {}
    config.pop("name", None)
    return {"class": type(optimizer).__name__} | config


def _rate(optimizer: keras.optimizers.Optimizer) -> Any:
    schedule = graft.schedule_of(optimizer)
    if schedule is None:
        return rate_of(optimizer)
    try:
        return keras.saving.serialize_keras_object(schedule)
    except Exception:  # A function, or a class without a config.
        return type(schedule).__name__


def _compile_config(model: keras.Model) -> dict:
    try:
        config = model.get_compile_config()
    except Exception:  # A loss that is an object of a class without a config.
        config = None
    if not isinstance(config, dict) or not config:
        config = {"loss": getattr(model, "loss", None)}
    return config


def _layer(layer: keras.Layer) -> dict:
    """A layer's class and the options that do not depend on widths and names."""
    try:
        config = layer.get_config()
    except Exception:  # Of a class without one.
        config = {}
    rule = rules.find(layer)
    widths = () if rule is None else (*rule.widths, *rule.depth, *rule.nested)
    kept = {k: v for k, v in config.items() if k not in widths}
    return {"class": type(layer).__name__} | _stripped(kept)


def _stripped(value: Any) -> Any:
    """A config without what is the build's own."""
    if isinstance(value, dict):
        return {k: _stripped(v) for k, v in value.items() if k not in _OWN}
    if isinstance(value, (list, tuple)):
        return [_stripped(item) for item in value]
    return value
