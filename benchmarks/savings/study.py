"""Which runs the study has: what is known of some says which others are worth it."""

import dataclasses
from collections.abc import Iterator

from benchmarks.savings.courses import Course, Growth
from benchmarks.savings.results import Results
from benchmarks.savings.tasks import Size

SEEDS = (0, 1, 2)
SCALES = (0.1, 0.25, 0.5, 1.0)  # of the paired noise
SCALE = 0.25  # the default
SCREEN = 0.6  # the share of the budget at which settings are compared
MOMENT = 0.25  # the share spent before a growth, where nothing else is said
FRONTIER = {"decoder": (0.3, 0.4, 0.6, 1.0), "t5": (0.3, 0.4, 0.6)}
URGENT = 6  # of the screened settings; the others have time
RATES = {
    "decoder": {"scratch": (1e-3, 2e-3, 5e-4, 4e-3), "small": (2e-3, 4e-3, 1e-3)},
    "t5": {"scratch": (2e-2, 1e-2, 4e-2, 5e-3), "small": (2e-2, 4e-2, 1e-2)},
    "t5-adam": {"scratch": (2e-3, 4e-3, 1e-3, 5e-4), "small": (2e-3, 4e-3, 1e-3, 8e-3)},
}
PEERS = (
    "HyperCloning",
    "Net2Net",
    "StagedTraining",
    "ZeroPadding",
    "Lemon",
    "DepthStacking",
)
# Settings that are below the default on the first seed of a task, or were expected to be.
CONTENDERS = ("paired 0.5", "random 0.5", "rates by width")
QUARTERED = {"learning_rate_factor": 0.25}  # never the best
FULL = {"decoder": Size(4, 4), "t5": Size(4, 2), "t5-adam": Size(4, 2)}
HALF = {"decoder": Size(2, 4), "t5": Size(2, 2), "t5-adam": Size(2, 2)}
QUARTER = {"decoder": Size(1, 4), "t5": Size(1, 2), "t5-adam": Size(1, 2)}


class Study:
    """The runs of one task, in the order of their importance.

    Args:
        task: string, a key of `tasks.TASKS`.
        results: `Results`.
    """

    def __init__(self, task: str, results: Results):
        self.task, self.results = task, results

    def stages(self) -> Iterator[list[Course]]:
        """The runs that can be said so far; a later stage needs an earlier one's end."""
        if self.scratch() is None:
            yield self.scratch_sweep()
        if (small := self.small()) is None:
            yield self.small_sweep()
            return
        yield self.factors(small.rate)
        if (default := self.default()) is None:
            return
        if (scratch := self.scratch()) is None:
            return
        yield self.seeds(scratch, (1.0,))
        yield self.seeds(default, FRONTIER[self.task])
        screened, alone = self.screened(default), self.seeds(small, (0.5, 1.0))
        yield [
            course
            for factor in self.factors(small.rate)
            if factor != default and factor.growths[0].training != QUARTERED
            for course in self.seeds(factor, (SCREEN,))
        ]
        yield alone[:1]
        yield screened[:URGENT]
        yield self.peers(default)
        yield alone[1:]
        yield screened[URGENT:]
        yield [*self.scratch_sweep(), *self.small_sweep()]  # what is left of them
        yield [
            course
            for peer in PEERS
            if (best := self.best_peer(peer, default)) is not None
            for course in self.seeds(best, (SCREEN,))
        ]
        yield [
            course
            for setting in screened
            if setting.setting in CONTENDERS
            for course in self.seeds(setting, (SCREEN,))
        ]
        if (chosen := self.results.best(screened, SCREEN)) is not None:
            yield self.seeds(chosen, FRONTIER[self.task])

    def scratch_sweep(self) -> list[Course]:
        """The grown size from the start, at several rates."""
        return [
            Course("scratch", self.task, FULL[self.task], rate)
            for rate in RATES[self.task]["scratch"]
        ]

    def scratch(self) -> Course | None:
        """The best of them."""
        return self.results.turn(self.scratch_sweep(), 1.0)

    def small_sweep(self) -> list[Course]:
        """Half the width, at several rates, for a small share of the budget."""
        return [
            Course("small alone", self.task, HALF[self.task], rate, budgets=(0.3,))
            for rate in RATES[self.task]["small"]
        ]

    def small(self) -> Course | None:
        """The best of them."""
        return self.results.turn(self.small_sweep(), 0.3)

    def factors(self, rate: float) -> list[Course]:
        """Self-fusion as `DeepFusion` does it, with several factors on the rate."""
        return [
            self.grown(f"self-fusion, rate x{factor:g}", rate, factor=factor)
            for factor in (0.5, 0.25, 1.0)
        ]

    def default(self) -> Course | None:
        """The best of them."""
        if (small := self.small()) is None:
            return None
        return self.results.best(self.factors(small.rate), SCREEN)

    def screened(self, default: Course) -> list[Course]:
        """One change each to the best self-fusion."""
        rate = default.rate
        (growth,) = default.growths
        factor = growth.training["learning_rate_factor"]
        full, half = FULL[self.task], HALF[self.task]

        def changed(setting, at=MOMENT, parents=1, training=None, **options):
            return self.grown(
                setting,
                rate,
                factor=factor,
                at=at,
                parents=parents,
                training=training,
                **options,
            )

        quarter = dataclasses.replace(growth, to=half, at=0.1)
        return [
            changed("growth at 0.40", at=0.4),
            changed("growth at 0.15", at=0.15),
            changed("two parents, joint norms", parents=2),
            changed("two parents, calibrated norms", parents=2, norms="calibrated"),
            changed("optimizer reset", training={"optimizer_state": "reset"}),
            changed(
                "optimizer reset, re-warm-up",
                training={"optimizer_state": "reset", "rewarmup_steps": 50},
            ),
            changed("re-warm-up", training={"rewarmup_steps": 50}),
            changed("paired 0.5", off_diagonal_scale=0.5),
            changed("paired 0.02", off_diagonal_scale=0.02),
            changed("random 0.1", off_diagonal="random"),
            changed("random 0.5", off_diagonal="random", off_diagonal_scale=0.5),
            changed("zeros", off_diagonal="zeros"),
            changed(
                "rates by width",
                training={
                    "learning_rate_multipliers": "width",
                    "learning_rate_factor": 1.0,
                },
            ),
            Course(
                "1x to 2x to 4x",
                self.task,
                QUARTER[self.task],
                rate / factor,
                (quarter, dataclasses.replace(growth, to=full, at=0.3)),
                (SCREEN,),
            ),
            changed("growth at 0.50", at=0.5),
        ]

    def peers(self, default: Course) -> list[Course]:
        """The operators of others, on the same course, at several rates."""
        return [course for peer in PEERS for course in self.peer(peer, default)]

    def peer(self, name: str, default: Course) -> list[Course]:
        """One of them, with several factors on the rate."""
        (growth,) = default.growths
        if name == "DepthStacking":
            # From half the depth, at the rate that the width has.
            full, rate = FULL[self.task], self.scratch().rate
            half = dataclasses.replace(full, layers=full.layers // 2)
            default = dataclasses.replace(default, size=half, rate=rate)
        return [
            dataclasses.replace(
                default,
                setting=f"{name}, rate x{factor:g}",
                growths=(
                    dataclasses.replace(
                        growth,
                        operator=name,
                        options={},
                        training={"learning_rate_factor": factor},
                    ),
                ),
            )
            for factor in (0.5, 1.0)
        ]

    def best_peer(self, name: str, default: Course) -> Course | None:
        """The better of them."""
        return self.results.best(self.peer(name, default), SCREEN)

    def grown(
        self,
        setting: str,
        rate: float,
        *,
        factor: float,
        at: float = MOMENT,
        parents: int = 1,
        training: dict | None = None,
        **options,
    ) -> Course:
        """A course that fuses the half-wide model once."""
        training = {"learning_rate_factor": factor} | (training or {})
        growth = Growth(
            FULL[self.task],
            at,
            options=options,
            parents=parents,
            training=training,
        )
        size = HALF[self.task]
        return Course(setting, self.task, size, rate, (growth,), (SCREEN,))

    def seeds(self, course: Course, budgets: tuple[float, ...]) -> list[Course]:
        """A course for all seeds, at several budgets."""
        return [
            dataclasses.replace(course, seed=seed, budgets=budgets) for seed in SEEDS
        ]


class LongStudy:
    """One seed of the decoder on four times the budget, at the rates found on the other.

    Args:
        results: `Results`.
    """

    def __init__(self, results: Results):
        self.study = Study("decoder", results)

    def stages(self) -> Iterator[list[Course]]:
        """Without growth, and the two best factors; the small one's halved rate too."""
        study = self.study
        scratch, small = study.scratch(), study.small()
        if scratch is None or small is None:
            return
        found = [
            scratch,
            small,
            *(
                study.grown(f"self-fusion, rate x{factor:g}", small.rate, factor=factor)
                for factor in (0.5, 1.0)
            ),
            dataclasses.replace(small, rate=small.rate / 2),
            dataclasses.replace(scratch, rate=scratch.rate / 2),
        ]
        yield [
            dataclasses.replace(course, task="decoder-long", budgets=(0.5, 0.75, 1.0))
            for course in found
        ]


class DefaultStudy:
    """The default against other scales of its noise and against the operators of others.

    On one text, at the rates found by the study of a task.

    Args:
        task: string, `"decoder-default"` or `"t5-default"`.
        results: `Results`.
    """

    def __init__(self, task: str, results: Results):
        self.task = task
        self.study = Study(task.removesuffix("-default"), results)

    def stages(self) -> Iterator[list[Course]]:
        """All scales, all operators, then how soon the default is at scratch's loss."""
        study = self.study
        if (default := study.default()) is None:
            return
        factor = default.growths[0].training["learning_rate_factor"]
        by_scale = {
            scale: study.grown(
                f"self-fusion, noise {scale:g}",
                default.rate,
                factor=factor,
                off_diagonal_scale=scale,
            )
            for scale in SCALES
        }
        yield self._seeds(by_scale.values())
        peers = [study.best_peer(name, default) for name in PEERS]
        yield self._seeds([peer for peer in peers if peer is not None])
        if (scratch := study.scratch()) is None:
            return
        yield self._seeds([scratch], (1.0,))
        yield self._seeds([by_scale[SCALE]], FRONTIER[study.task])

    def _seeds(self, found, budgets=(SCREEN,)):
        return [
            dataclasses.replace(course, task=self.task)
            for one in found
            for course in self.study.seeds(one, budgets)
        ]


def courses(tasks: list[str], results: Results) -> list[Course]:
    """All runs that can be said so far, the first stages of all tasks first.

    Args:
        tasks: list of keys of `tasks.TASKS`.
        results: `Results`.
    """
    studies = [_study(task, results) for task in tasks]
    stages = [list(study.stages()) for study in studies]
    deepest = max(map(len, stages))
    return [
        course
        for number in range(deepest)
        for found in stages
        if number < len(found)
        for course in found[number]
    ]


def _study(task, results):
    if task == "decoder-long":
        return LongStudy(results)
    kind = DefaultStudy if task.endswith("-default") else Study
    return kind(task, results)
