"""What was aimed for beside the best that was found."""

import dataclasses

from repository import ROOT

from experiments import goals
from experiments.harness.study import Size

WIDE = {"to": dataclasses.asdict(Size.parse("64x4")), "at": 0.5}
DEEP = WIDE | {"operator": "DepthStacking"}
PAIR = WIDE | {"parents": 2}


def run(setting, spent, loss, growths=(), rate=0.01, parents="counted", params=2e6):
    """A run with one end, of which a fifth of the FLOPs are the parents'."""
    return {
        "course": {
            "setting": setting,
            "size": WIDE["to"],
            "rate": rate,
            "seed": 0,
            "parents": parents,
            "growths": list(growths),
            "budget": {"size": WIDE["to"]},
        },
        "params": params,
        "parents_share": 0.2,
        "finals": [{"budget": 1.0, "spent": spent, "loss": loss}],
        "curve": [],
    }


SCRATCH = [
    run("scratch", 0.5, 4.0) | {"finals": [
        {"budget": spent, "spent": spent, "loss": loss}
        for spent, loss in ((0.25, 4.0), (0.5, 3.5), (1.0, 3.0))
    ]}
]  # fmt: skip


def goal(name):
    """A goal by its name."""
    (found,) = [x for x in goals.GOALS if x.name == name]
    return found


def shares(name, results):
    """The settings that fit a goal, and their shares."""
    found = goals.found(goal(name), "decoder_64x4", results)
    return {x.setting: round(x.saving.share.mean, 3) for x in found}


def test_a_growth_counts_for_the_goals_that_it_fits():
    results = [
        *SCRATCH,
        run("wide", 0.8, 3.0, [WIDE]),
        run("deep", 0.7, 3.0, [DEEP]),
        run("pair", 0.9, 3.0, [PAIR]),
        run("tiny", 0.3, 3.0, [DEEP], params=1e5),
    ]
    assert shares("from nothing", results) == {"wide": 0.8, "deep": 0.7, "pair": 0.9}
    assert shares("from nothing, in width", results) == {"wide": 0.8, "pair": 0.9}
    # One of the two is trained by another worker.
    assert shares("a worker for each parent", results) == {"pair": 0.8}
    assert shares("one parent exists", results) == {}


def test_parents_that_exist_cost_nothing():
    results = [
        *SCRATCH,
        run("pair", 0.9, 3.0, [PAIR], parents="free"),
        run("deep", 0.6, 3.0, [DEEP], parents="free"),
    ]
    assert shares("two distinct parents exist", results) == {"pair": 0.7}
    assert shares("one parent exists", results) == {"deep": 0.4}
    assert shares("up to four distinct parents exist", results) == {
        "pair": 0.7,
        "deep": 0.4,
    }
    assert shares("from nothing", results) == {}


def test_a_loss_that_scratch_does_not_reach_is_no_share():
    assert shares("from nothing", [*SCRATCH, run("deep", 0.9, 2.9, [DEEP])]) == {}


def test_each_rate_of_a_setting_is_one_that_was_tried():
    results = [run("deep", 1.0, 3.0, [DEEP], rate) for rate in (0.01, 0.01, 0.02)]
    assert goals.tried(goal("from nothing"), results) == 2


def test_the_page_has_the_table_of_the_command():
    page = (ROOT / "docs" / "savings.md").read_text("utf-8")
    assert goals.table().strip() in page
