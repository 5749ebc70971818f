"""Recipes: callbacks with settings that worked well in a study, each with its figure.

`keras_fusion.recipes` is this module. What the figures stand on is in docs/savings.md and
docs/few_data.md.
"""

import dataclasses
from typing import Any

import keras

from keras_fusion.errors import is_integer, require
from keras_fusion.operators.new_features import NewFeatures
from keras_fusion.operators.stacking import DepthStacking
from keras_fusion.training.deep_fusion import DeepFusion
from keras_fusion.training.grow_model import GrowModel
from keras_fusion.training.schedules import AfterSteps


@dataclasses.dataclass(frozen=True)
class Figure:
    """What a recipe was measured to give.

    Args:
        share: float. FLOPs over those of the run from scratch to the same loss; `None`
            where the figure is another one.
        text: string. The figure and what it is compared with, in a sentence.
        setting: string. The setting of the study that it comes from.
        study: string. The study, see `python -m experiments table STUDY`.
        seeds: int. Over how many seeds.
    """

    share: float | None
    text: str
    setting: str
    study: str
    seeds: int


_ONE_MILLION = "decoder_128x4"  # 1.05M parameters, 20 tokens per parameter
_EIGHT_LAYERS = "decoder_96x8"  # 1.08M parameters, 20 tokens per parameter
_A_THIRD = "decoder_64x4"  # 0.33M parameters, 20 tokens per parameter

FIGURES = {
    "parents_exist": Figure(
        0.67,
        "Two parents of half the width, trained on as many tokens, fused: 0.67 of the "
        "FLOPs of the run from scratch to the same loss, the parents' not counted.",
        "two parents",
        _ONE_MILLION,
        1,
    ),
    "overtrained_parents_exist": Figure(
        0.47,
        "Two parents of half the width, trained on four times as many tokens, fused: 0.47 "
        "± 0.33 of a run from scratch with the same initial values, which were not the "
        "best, the parents' FLOPs not counted.",
        "two over-trained parents, a quarter of the rate",
        _A_THIRD,
        3,
    ),
    "parent_exists": Figure(
        0.79,
        "One parent of half the width: 0.79, the parent's FLOPs not counted.",
        "one parent, new features",
        _ONE_MILLION,
        1,
    ),
    "shallow_parent_exists": Figure(
        0.44,
        "One parent of half the layers, trained on as many tokens, stacked on itself: "
        "0.44, the parent's FLOPs not counted.",
        "four layers that exist, copies",
        _EIGHT_LAYERS,
        3,
    ),
    "from_scratch": Figure(
        0.85,
        "From one layer of half the width, first in width and then in depth: 0.85, all "
        "FLOPs counted; 0.93 against the best run without growth.",
        "width then depth: 64x1, 128x1, 128x4",
        _ONE_MILLION,
        1,
    ),
    "few_data": Figure(
        None,
        "Two annealed parents of half the width on 50,000 tokens: 0.058 to 0.069 nats "
        "below the best single model of the fused size.",
        "two parents of 64, fused, at 1",
        "few_data",
        3,
    ),
}


def parents_exist(
    partners: list, *, after: int = 1, **options: Any
) -> list[keras.callbacks.Callback]:
    """Fuses the live model with others that are trained already, at half the rate.

    The factor multiplies the live rate: give a model whose rate has fallen to zero a new
    one before.

    Args:
        partners: list of models or of paths of saved ones, see `DeepFusion`.
        after: int. Steps of training with the callback before the fusion. Defaults to 1.
        **options: further arguments of `DeepFusion`.

    Returns:
        List of callbacks for `fit`.

    Example:

    >>> import keras, keras_fusion
    >>> model, other = (
    ...     keras.Sequential(
    ...         [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    ...     )
    ...     for _ in range(2)
    ... )
    >>> (grow,) = keras_fusion.recipes.parents_exist([other])
    >>> grow.learning_rate_factor
    0.5
    """
    options = {"learning_rate_factor": 0.5} | options
    return [DeepFusion(schedule=AfterSteps(after), partners=partners, **options)]


def overtrained_parents_exist(
    partners: list, *, after: int = 1, **options: Any
) -> list[keras.callbacks.Callback]:
    """Fuses the live model with others, at a quarter of the rate.

    For parents that have read several times as many tokens as the fused model is going to
    read. In the study, half and an eighth of the rate ended 0.007 to 0.021 nats higher on
    the seed on which the factor was chosen.

    Args:
        partners: list of models or of paths of saved ones, see `DeepFusion`.
        after: int. Steps of training with the callback before the fusion. Defaults to 1.
        **options: further arguments of `DeepFusion`.

    Returns:
        List of callbacks for `fit`.

    Example:

    >>> import keras, keras_fusion
    >>> (grow,) = keras_fusion.recipes.overtrained_parents_exist(["other.keras"])
    >>> grow.learning_rate_factor
    0.25
    """
    options = {"learning_rate_factor": 0.25} | options
    return parents_exist(partners, after=after, **options)


def parent_exists(
    factor: float = 2, *, after: int = 1, **options: Any
) -> list[keras.callbacks.Callback]:
    """Gives a trained model new random features, at half the rate.

    Args:
        factor: number above 1. How many times as wide the model becomes.
        after: int. Steps of training with the callback before the growth. Defaults to 1.
        **options: further arguments of `GrowModel`.

    Returns:
        List of callbacks for `fit`.

    Example:

    >>> import keras_fusion
    >>> (grow,) = keras_fusion.recipes.parent_exists(factor=1.5)
    >>> str(grow.operator)
    'new features x1.5'
    """
    options = {"learning_rate_factor": 0.5} | options
    return [GrowModel(NewFeatures(factor), AfterSteps(after), **options)]


def shallow_parent_exists(
    factor: int = 2, *, after: int = 1, **options: Any
) -> list[keras.callbacks.Callback]:
    """Stacks the blocks of a trained model on each other, at half the rate.

    Copies beat random new blocks here; where the shallow model's own training counts,
    see `from_scratch`.

    Args:
        factor: int of at least 2. How many times as deep the model becomes.
        after: int. Steps of training with the callback before the growth. Defaults to 1.
        **options: further arguments of `GrowModel`.

    Returns:
        List of callbacks for `fit`.

    Example:

    >>> import keras_fusion
    >>> (grow,) = keras_fusion.recipes.shallow_parent_exists()
    >>> str(grow.operator)
    'depth stacked x2'
    """
    options = {"learning_rate_factor": 0.5} | options
    return [GrowModel(DepthStacking(factor), AfterSteps(after), **options)]


def from_scratch(
    steps: int, *, width: float = 2, depth: int = 4, **options: Any
) -> list[keras.callbacks.Callback]:
    """Grows a shallow, narrow model in width at 30% of the steps and in depth at 60%.

    Begin at twice the rate that suits the full model: it is halved at the growth in
    depth. Let it fall to zero over the last part of the run.

    Args:
        steps: int. All optimizer steps of the run.
        width: number above 1. How many times as wide the model becomes. Defaults to 2.
        depth: int. How many times as deep it becomes after that. Defaults to 4.
        **options: further arguments of both `GrowModel`, such as `verbose`.

    Returns:
        List of callbacks for `fit`.

    Raises:
        FusionError: for fewer than 10 steps.

    Example:

    >>> import keras_fusion
    >>> callbacks = keras_fusion.recipes.from_scratch(steps=1000)
    >>> [grow.schedule.steps for grow in callbacks]
    [300, 600]
    """
    require(is_integer(steps, 10), "steps", steps, "an integer of at least 10")
    wider = GrowModel(NewFeatures(width), AfterSteps(round(0.3 * steps)), **options)
    options = {"learning_rate_factor": 0.5} | options
    blocks = DepthStacking(depth, new_blocks="random")
    return [wider, GrowModel(blocks, AfterSteps(round(0.6 * steps)), **options)]


def few_data(
    partners: list, *, after: int = 1, **options: Any
) -> list[keras.callbacks.Callback]:
    """Fuses models that were trained to their end on scarce data.

    The fused model starts at the mean of their logits, which is what helps. Train it only
    briefly after that: at a hundredth of the rate it keeps that start. In the study the
    parents had a weight decay of 1.

    Args:
        partners: list of models or of paths of saved ones, see `DeepFusion`.
        after: int. Steps of training with the callback before the fusion. Defaults to 1.
        **options: further arguments of `DeepFusion`.

    Returns:
        List of callbacks for `fit`.

    Example:

    >>> import keras, keras_fusion
    >>> other = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    ... )
    >>> (grow,) = keras_fusion.recipes.few_data([other])
    >>> grow.operator.norms
    'block'
    """
    options = {"learning_rate_factor": 0.01, "norms": "block"} | options
    return [DeepFusion(schedule=AfterSteps(after), partners=partners, **options)]
