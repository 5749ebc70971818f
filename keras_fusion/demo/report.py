"""The figures of a demo, as data and as a table."""

import dataclasses
import json
from pathlib import Path

from keras_fusion.demo.planning import Plan
from keras_fusion.demo.settings import Settings
from keras_fusion.demo.training import Run
from keras_fusion.t5.markdown import table
from keras_fusion.t5.meter import Point
from keras_fusion.training.files import whole


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        run: string.
        parameters: int.
        flops: int. Training FLOPs, those of its parents included.
        own_flops: int. Without those of its parents.
        loss: float. Validation loss in nats per token.
        accuracy: float. Token accuracy on the validation data.
    """

    run: str
    parameters: int
    flops: int
    own_flops: int
    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that was measured.

    Attributes:
        settings: `Settings`.
        seed: int.
        plan: `Plan`.
        parent: `Run` of the partner.
        fused: `Run` of the parent that was fused with it.
        ensemble: `Point` of the mean of both parents' logits.
        small: `Run` of a model like a parent, alone with all FLOPs.
        twin: `Run` of the wide model from scratch.
    """

    settings: Settings
    seed: int
    plan: Plan
    parent: Run
    fused: Run
    ensemble: Point
    small: Run
    twin: Run

    @property
    def parents_flops(self) -> int:
        """The training FLOPs of both parents."""
        return self.parent.final.flops + self.before_growth[-1].flops

    @property
    def before_growth(self) -> tuple[Point, ...]:
        """Evaluations of the fused run's small model."""
        small = self.parent.final.parameters
        return tuple(p for p in self.fused.points if p.parameters == small)

    @property
    def after_growth(self) -> tuple[Point, ...]:
        """Evaluations of the fused run's wide model, the first right after the growth."""
        return self.fused.points[len(self.before_growth) :]

    def rows(self) -> list[Row]:
        """The lines of the table."""
        parent, grown = self.parent.final, self.after_growth
        parents = self.parents_flops
        return [
            _row("parent A, at the growth", self.before_growth[-1]),
            _row("parent B, at the growth", parent),
            _row("mean of their logits", self.ensemble),
            _row("fused, right after the growth", grown[0], parent.flops, parents),
            _row("fused, at the end", grown[-1], parent.flops, parents),
            _row("small model alone", self.small.final),
            _row("from-scratch twin", self.twin.final),
        ]

    def flops_to_match(self) -> int | None:
        """The FLOPs, parents' included, at which the fused run reached the twin's loss.

        Returns:
            The first evaluation of the wide model with at most the twin's final loss,
            or `None` if it never got there.
        """
        for point in self.after_growth:
            if point.loss <= self.twin.final.loss:
                return self.parent.final.flops + point.flops
        return None

    def table(self) -> str:
        """The rows as text."""
        head = ("run", "parameters", "TFLOP", "without parents", "loss", "accuracy")
        rows = [
            (
                row.run,
                f"{row.parameters:,}",
                f"{row.flops / 1e12:.2f}",
                f"{row.own_flops / 1e12:.2f}",
                f"{row.loss:.3f}",
                f"{row.accuracy:.1%}",
            )
            for row in self.rows()
        ]
        return table(head, rows, aligned=True)

    def verdict(self) -> str:
        """The figures in a sentence or two, whichever way they fell."""
        fused, twin = self.after_growth[-1], self.twin.final
        difference = twin.loss - fused.loss
        outcome = "ahead of" if difference > 0 else "behind"
        sentence = (
            f"At equal training FLOPs, the parents' included, the fused model is "
            f"{abs(difference):.3f} nats per token {outcome} its from-scratch twin "
            f"({fused.loss:.3f} against {twin.loss:.3f})."
        )
        match = self.flops_to_match()
        if match is None:
            return f"{sentence} It never reached the twin's final loss. {self._alone()}"
        own = match - self.parents_flops
        return (
            f"{sentence} It reached the twin's final loss with {match / twin.flops:.0%} "
            f"of the twin's FLOPs, or {own / twin.flops:.0%} if the parents' are not "
            f"counted. {self._alone()}"
        )

    def _alone(self) -> str:
        """The sentence on the small model, the better choice where it ends lower."""
        small, fused = self.small.final, self.after_growth[-1]
        behind = small.loss > fused.loss
        outcome = "behind" if behind else "ahead of"
        return (
            f"A small model alone, trained for the same FLOPs, ends at {small.loss:.3f}: "
            f"{abs(small.loss - fused.loss):.3f} {outcome} the fused one"
            + ("." if behind else ", so that here it is the better use of them.")
        )

    def to_dict(self) -> dict:
        """All figures as plain data."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "seed": self.seed,
            "plan": dataclasses.asdict(self.plan),
            "runs": [
                run.to_dict()
                for run in (self.parent, self.fused, self.small, self.twin)
            ],
            "table": [dataclasses.asdict(row) for row in self.rows()],
            "parents_flops": self.parents_flops,
            "flops_to_match_twin": self.flops_to_match(),
        }

    def save(self, path: Path) -> None:
        """Writes all figures as JSON."""
        with whole(path) as unfinished:
            text = json.dumps(self.to_dict(), indent=2) + "\n"
            unfinished.write_text(text, encoding="utf-8")


def _row(run, point, partner_flops=0, parents_flops=0):
    flops = point.flops + partner_flops
    own = flops - parents_flops
    return Row(run, point.parameters, flops, own, point.loss, point.accuracy)
