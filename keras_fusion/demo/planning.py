"""Divides a budget of FLOPs among the runs, within a limit of time."""

import dataclasses

from keras_fusion.demo.settings import Settings

# Importing, reading the sources, and tracing the models' graphs: no training step makes
# them longer or shorter. Measured on two cores, and rounded up.
FIXED_SECONDS = 90.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one training step.

    Attributes:
        flops: int.
        seconds: float.
    """

    flops: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """The number of steps of each run.

    Attributes:
        budget: int. Training FLOPs for each side.
        parent_steps: int. Steps of each of the two parents.
        wide_steps: int. Steps of the fused model.
        twin_steps: int. Steps of the twin.
        small_steps: int. Steps of the small model alone.
        seconds: float. About what all of it takes.
    """

    budget: int
    parent_steps: int
    wide_steps: int
    twin_steps: int
    small_steps: int
    seconds: float

    def describe(self, wide: Cost, small: Cost) -> str:
        """Tells how the budget is spent."""
        return (
            f"Budget: {self.budget / 1e12:.2f} TFLOP for each side. A step costs "
            f"{wide.flops / 1e9:.2f} GFLOP in the wide model and {small.flops / 1e9:.2f} "
            "GFLOP in a parent.\n"
            f"  fusion: 2 parents x {self.parent_steps} steps, then {self.wide_steps} "
            "steps in the fused model\n"
            f"  twin:   {self.twin_steps} steps from scratch\n"
            f"  alone:  {self.small_steps} steps of a model like a parent"
        )


def make_plan(
    settings: Settings, wide: Cost, small: Cost, limit: float | None = None
) -> Plan:
    """Gives all sides the same FLOPs.

    Args:
        settings: `Settings`.
        wide: `Cost` of a step of the fused model and of the twin.
        small: `Cost` of a step of a parent.
        limit: float. Seconds that the demo may take. The budget is cut if it must be.
            By default there is no limit.

    Returns:
        A `Plan`.
    """
    plan = _share(settings, wide, small, settings.twin_steps)
    if limit is None or plan.seconds <= limit:
        return plan
    training = plan.seconds - FIXED_SECONDS
    share = max(limit - FIXED_SECONDS, 0.0) / training
    # Fewer steps than this would not even hold the warm-up.
    steps = max(round(share * settings.twin_steps), 2 * settings.warmup_steps)
    return _share(settings, wide, small, steps)


def _share(settings, wide, small, twin_steps):
    budget = twin_steps * wide.flops
    parent_steps = round(settings.parents_share * budget / (2 * small.flops))
    wide_steps = round((budget - 2 * parent_steps * small.flops) / wide.flops)
    small_steps = round(budget / small.flops)
    training = (2 * parent_steps + small_steps) * small.seconds
    training += (wide_steps + twin_steps) * wide.seconds
    steps = parent_steps, wide_steps, twin_steps, small_steps
    return Plan(budget, *steps, FIXED_SECONDS + training)
