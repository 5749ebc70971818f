"""The language of fusion trees, recipes, and what a tree costs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_fusion.t5 import recipe, results, store, tables
from keras_fusion.t5.costs import cost
from keras_fusion.t5.tree import parse, trainings

trees = st.recursive(
    st.sampled_from(["S", "M", "S7", "L[steps=5]"]),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from("ML"), inner, inner).map(
            "{0[0]}({0[1]}, {0[2]})".format
        ),
        st.tuples(st.sampled_from("ML"), inner).map("{0[0]}(3*{0[1]})".format),
        inner.map("M[off_diagonal=random, rate=0.5]( {} ,S)".format),
    ),
    max_leaves=6,
)


@given(text=trees)
def test_a_name_is_its_tree(text):
    tree = parse(text)
    assert parse(tree.name) == tree
    names = [node.name for node in trainings([tree])]
    assert len(set(names)) == len(names)
    for node in trainings([tree]):
        for parent in node.parents:
            assert names.index(parent.name) < names.index(node.name)
    scratch = [node.number for node in trainings([tree]) if not node.parents]
    assert None not in scratch


def test_trainings_are_told_apart_and_shared():
    seven = parse("L(M(S, S), M(S, S))")
    assert seven.name == "L(M(S1,S2),M(S3,S4))"
    assert len(trainings([seven])) == 7
    shared = trainings([seven, parse("M(S, S)"), parse("M(2*S)"), parse("M(S2, S)")])
    # M(S1,S2) is in the first tree; M(2*S1) and M(S2,S1) start from its leaves.
    assert [n.name for n in shared[7:]] == ["M(2*S1)", "M(S2,S1)"]
    seeds = {(n.seed(run), n.folder) for run in (0, 1) for n in shared}
    assert len({s for s, _ in seeds}) == 18 and len({f for _, f in seeds}) == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m", "'m'.*a shape in capitals"),
        ("M(S", "at position 3.*a comma or a bracket"),
        ("M(S)", "a second parent, or copies such as 2"),
        ("M(1*S)", "a number of copies above 1"),
        ("M(2*S,S)", "one closing bracket"),
        ("M1(S,S)", "no number: M1 has parents"),
        ("M[depth=2]", "options of .*'steps'"),
        ("M[steps=x]", "a value of type int for steps"),
        ("M S", "the end"),
    ],
)
def test_what_is_no_tree_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_recipes_double_their_shapes(scale):
    found = recipe.load(scale)
    for small, big in (("S", "M"), ("M", "L")):
        for key, value in found.shapes[small].items():
            times = 1 if key in ("num_layers", "head_size") else 2
            assert found.shapes[big][key] == times * value
    settings = [t for table in found.tables for t in table.trees.values()]
    assert {"M(S1,S2)", "M(2*S1)", "L(M(S1,S2),M(S3,S4))"} <= {t.name for t in settings}


def test_recipes_and_trees_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="scale='huge'.*'paper', 'small', 'tiny'"):
        recipe.load("huge")
    broken = tmp_path / "broken.toml"
    broken.write_text("[text]\nsource = 'c4'\n")
    with pytest.raises(ValueError, match="broken.toml' is not one: 'tables'"):
        recipe.load(str(broken))
    tiny = recipe.load("tiny")
    with pytest.raises(ValueError, match=r"'L\(S1,S2\)' makes .*'hidden_dim': 96"):
        tiny.check(parse("L(S, S)"))
    with pytest.raises(ValueError, match="the shape 'XL'"):
        tiny.check(parse("XL"))


@pytest.fixture
def finished(tmp_path):
    """A store whose results are as a training writes them, for the tree of seven."""
    kept = store.Store(tmp_path)
    seconds = {"S": 60.0, "M": 120.0, "L": 600.0}
    for node in trainings([parse("L(M(S, S), M(S, S))"), parse("L"), parse("L(2*M)")]):
        late = 30.0 if node.name == "S3" else 0.0
        kept.entry(0, node).write(
            "result",
            {
                "seed": 0,
                "parameters": 7,
                "start": {"mean_change": 0.1} if node.parents else {},
                "loss": 2.0,
                "accuracy": 0.5,
                "step_flops": len(node.name),
                "flops": 10 * len(node.name),
                "seconds": seconds[node.shape] + late,
                "devices": 2,
                "points": [
                    {"step": s, "loss": 4.0 - s / 5, "accuracy": 0.5}
                    for s in (0, 5, 10)
                ],
            },
        )
    return kept


def test_costs_of_a_tree(finished):
    found = cost(parse("L(M(S, S), M(S, S))"), 0, finished)
    assert found.own_flops == 10 * len("L(M(S1,S2),M(S3,S4))")
    assert found.flops == found.own_flops + 10 * (4 * 2 + 2 * len("M(S1,S2)"))
    assert found.hours_in_series * 3600 == pytest.approx(4 * 60 + 30 + 2 * 120 + 600)
    assert found.accelerator_hours == pytest.approx(2 * found.hours_in_series)
    # The longest way leads over S3.
    assert found.hours_in_parallel * 3600 == pytest.approx(90 + 120 + 600)


def test_a_self_fusion_pays_its_parent_once(finished):
    found = cost(parse("L(2*M)"), 0, finished)
    assert found.flops - found.own_flops == 10 * len("M1")


def test_tables_say_what_was_measured(finished, tmp_path):
    tiny = recipe.load("tiny")
    gathered = results.collect(tiny, finished)
    path = tmp_path / "results.json"
    results.save(gathered, path)
    assert results.load(path) == json.loads(json.dumps(gathered))
    settings = gathered["tables"]["T5-L"]["settings"]
    run = settings["seven trainings"]["runs"][0]
    before = run["cost"]["flops"] - run["cost"]["own_flops"]
    own = 5 * run["step_flops"]
    assert results.flops_to_reach(run, 3.0) == (before + own, own)
    assert results.flops_to_reach(run, 1.0) is None
    text = tables.markdown(gathered)
    assert (
        "| seven trainings | `L(M(S1,S2),M(S3,S4))` | 1 | 4.000 | 1e-01 | 2.000" in text
    )
    assert "fusion property kept" in text
    assert "off_diagonal=random" not in text  # it has not finished
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    tables.insert("new", page)
    assert page.read_text() == (f"before\n{tables.BEGIN}\n\nnew\n{tables.END}\nafter\n")
    with pytest.raises(ValueError, match="page.md' needs the lines"):
        page.write_text("nothing")
        tables.insert("new", page)
