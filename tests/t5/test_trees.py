"""The language of fusion trees, recipes, and what a tree costs."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_fusion.errors import FusionError
from keras_fusion.t5 import markdown, plots, recipe, results, store, tables
from keras_fusion.t5 import tree as tree_language
from keras_fusion.t5.costs import Spent, cost
from keras_fusion.t5.tree import parse, trainings

TINY = recipe.load("tiny")
(SEVEN_TRAININGS,) = (
    t.trees["seven trainings"].name for t in TINY.tables if "seven trainings" in t.trees
)

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
        ("", "position 0.*it is empty"),
        (" \n", "position 0.*it is empty"),
        ("m", "'m'.*a shape in capitals"),
        ("M_", "'M_'.*a shape in capitals"),
        ("2*M", "a shape in capitals"),
        ("M.S", "a shape in capitals"),
        ("M(S", r"position 1.*'\(' was never closed"),
        ("M[steps=5", r"position 1.*'\[' was never closed"),
        ("M(S))", r"position 4.*unmatched '\)'"),
        ("  M(S))", r"position 6.*unmatched '\)'"),
        ("M(S)", "a second parent, or copies such as 2"),
        ("M()", "a second parent, or copies such as 2"),
        ("M(*S)", "a second parent, or copies such as 2"),
        ("M(*S, S)", "a shape in capitals"),
        ("M(S for S in S)", "a second parent, or copies such as 2"),
        ("M(1*S)", "position 2.*a number of copies above 1"),
        ("M(-2*S)", "a number of copies above 1"),
        ("M(2.0*S)", "a number of copies above 1"),
        ("M(True*S)", "a number of copies above 1"),
        ("M(S*2)", "a number of copies above 1"),
        ("M(2+S)", "a number of copies above 1"),
        ("M(2*S,S)", "position 2.*a self-fusion has one parent"),
        ("M(S,2*S)", "position 4.*a self-fusion has one parent"),
        ("M1(S,S)", "no number: M1 has parents"),
        ("M[depth=2]", "position 2.*one of the options noise_scale, .*steps"),
        ("M[]", "expected options: noise_scale, "),
        ("M[5]", "position 2.*expected options: noise_scale, "),
        ("M[steps]", "expected options: noise_scale, "),
        ("M[steps=5,steps=6]", "position 10.*steps is given twice"),
        ("M(steps=5)", "position 2.*options in square brackets"),
        ("M(S,S)[steps=5]", "options in square brackets, then parents"),
        ("M[steps=5)(S,S]", "options in square brackets, then parents"),
        ("M[rate=1][rate=2]", "options in square brackets, then parents"),
        ("M(S,S)(S,S)", "options in square brackets, then parents"),
        ("M S", "position 2.*invalid syntax"),
        ("M(S, S) # of mine", "position 8.*'#' has no meaning"),
        ("M('S')", "position 2.*has no meaning"),
        ("\u041c", "position 0.*has no meaning"),
        ("M\0", "position 1.*has no meaning"),
        ("M(" * 300 + "S" + ")" * 300, "too many nested parentheses"),
        (f"M({'9' * 5000}*S)", "Exceeds the limit"),
    ],
)
def test_what_is_no_tree_is_refused(text, message):
    with pytest.raises(FusionError, match=f"(?s){message}"):
        parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("steps=x", "steps to be an integer above 0"),
        ("steps=0", "steps to be an integer above 0"),
        ("steps=-5", "steps to be an integer above 0"),
        ("steps=5.0", "steps to be an integer above 0"),
        ("steps=True", "steps to be an integer above 0"),
        ("steps=99999999999", "steps to be an integer above 0"),
        ("rate=0", "rate to be a finite number above 0"),
        ("rate=-0.1", "rate to be a finite number above 0"),
        ("rate=nan", "rate to be a finite number above 0"),
        ("rate=1e999", "rate to be a finite number above 0"),
        ("rate=1+2j", "rate to be a finite number above 0"),
        ("off_diagonal=ones", "off_diagonal to be zeros or random for"),
        ("off_diagonal=paired", "off_diagonal to be zeros or random for"),
        ("off_diagonal=0", "off_diagonal to be zeros or random for"),
        ("noise_scale=-1", "scale to be a finite number of at least 0"),
        ("noise_scale=nan", "scale to be a finite number of at least 0"),
        ("off_diagonal_scale=-1", "noise_scale to be a finite number of at least 0"),
    ],
)
def test_options_are_checked_when_a_tree_is_read(options, message):
    for text in (f"M[{options}](S, S)", f"L(M[{options}](S, S), M)"):
        with pytest.raises(FusionError, match=message):
            parse(text)


def test_options_of_a_fusion_need_one():
    for options in ("off_diagonal=random", "steps=5, noise_scale=0.1"):
        with pytest.raises(FusionError, match="is for a fusion, and a node without"):
            parse(f"M[{options}]")
    assert parse("M[off_diagonal=paired](2*S)").option("off_diagonal", "") == "paired"


def test_noise_scale_under_its_old_name(tmp_path):
    """Trees of earlier versions keep their names, and so their folders."""
    old = parse("M[off_diagonal=random,off_diagonal_scale=0.2](S,S)")
    assert old.name == "M[off_diagonal=random,off_diagonal_scale=0.2](S1,S2)"
    assert old.folder == "M-off-diagonal-random-off-diagonal-scale-32f4b175"
    tiny = recipe.load("tiny")
    assert tiny.noise_scale(old) == 0.2 and tiny.noise_scale(parse("M(2*S)")) == 0.1
    with pytest.raises(FusionError, match="position 16.*noise_scale is given twice"):
        parse("M[noise_scale=1,off_diagonal_scale=1](2*S)")
    text = (recipe.FOLDER / "tiny.toml").read_text()
    path = tmp_path / "earlier.toml"
    path.write_text(text.replace("noise_scale = 0.1", "off_diagonal_scale = 0.3"))
    assert recipe.load(str(path)).fusion.noise_scale == 0.3


def test_noise_is_what_fuse_can_do():
    from keras_fusion.operators.arguments import NORMS
    from keras_fusion.values.fuse import OFF_DIAGONALS

    assert set(tree_language.SELF_OFF_DIAGONALS) == set(OFF_DIAGONALS)
    assert set(tree_language.OFF_DIAGONALS) == {*OFF_DIAGONALS} - {"paired"}
    assert recipe.NORMS == NORMS


def test_trees_are_python_expressions():
    name = "M[off_diagonal=random,steps=1000](L(2*S1),S2)"
    for text in (
        "M[steps=1_000, off_diagonal=random](L(2*S), S)",
        " M [off_diagonal = random, steps = 1000,]\n( L(2 * (S)),\n\tS, ) ",
    ):
        assert parse(text).name == name
    assert parse("M[rate=1]").name == "M1[rate=1.0]"


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_recipes_double_their_shapes(scale):
    found = recipe.load(scale)
    for small, big in (("S", "M"), ("M", "L")):
        for key, value in found.shapes[small].items():
            times = 1 if key in ("num_layers", "head_size") else 2
            assert found.shapes[big][key] == times * value
    settings = [t for table in found.tables for t in table.trees.values()]
    plain = {re.sub(r"\[.*?\]", "", tree.name) for tree in settings}
    assert {"M(S1,S2)", "M(2*S1)", "L(M(S1,S2),M(S3,S4))"} <= plain


def test_recipes_and_trees_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="scale='huge'.*'paper', 'small', 'tiny'"):
        recipe.load("huge")
    broken = tmp_path / "broken.toml"
    broken.write_text("[text]\nsource = 'c4'\n")
    with pytest.raises(FusionError, match="broken.toml' is not one: .* lacks training"):
        recipe.load(str(broken))
    tiny = recipe.load("tiny")
    with pytest.raises(FusionError, match="shape 'M' .*|makes a model of the sizes"):
        tiny.check(parse("M(99999999999*S)"))
    with pytest.raises(FusionError, match="noise_scale=0.2 and no noise"):
        tiny.check(parse("L(M[noise_scale=0.2](S, S), M)"))
    with pytest.raises(ValueError, match=r"'L\(S1,S2\)' makes .*'hidden_dim': 96"):
        tiny.check(parse("L(S, S)"))
    with pytest.raises(ValueError, match="the shape 'XL'"):
        tiny.check(parse("XL"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "standard-library"', "source = 5", "text.source must be a text"),
        ("vocabulary_size = 1024", "vocabulary_size = 0", "at least 1. Received: 0"),
        ("vocabulary_size = 1024", "", "text lacks vocabulary_size"),
        ("input_length = 88", "input_length = 88.5", "must be an integer"),
        ("input_length = 88", "input_length = 2", "at least 3"),
        ("noise_density = 0.15", "noise_density = 1", "between 0 and 1"),
        ("noise_density = 0.15", "noise_density = nan", "a finite number"),
        ("mean_span_length = 3.0", "mean_span_length = 0.5", "at least 1"),
        ("sentinels = 32", "sentinels = true", "must be an integer"),
        ("sentinels = 32", "sentinels = 2", "5 spans, more than sentinels=2"),
        ("sentinels = 32", "sentinells = 32", "lacks sentinels"),
        ("sentinels = 32", "sentinels = 32\nextra = 1", "unknown entries: extra"),
        ("coverage = 0.9995", "coverage = 0.5", "between 0.98 and 1"),
        ("byte_fallback = true", "byte_fallback = 1", "true or false"),
        ("hidden_dim = 48", "hidden_dim = 0", "shapes.S.hidden_dim must be an integer"),
        ("hidden_dim = 48", "", "shapes.S lacks hidden_dim"),
        ("hidden_dim = 48", "hidden_dim = 47", "add up"),
        ("[shapes.S]", "[shapes.s]", "shapes.s must have a name in capitals"),
        ("steps = 1000", "steps = -1", "training.steps must be at least 1"),
        ("steps = 1000", "steps = 99999999999", "below 2"),
        ("steps = 1000", 'steps = "many"', "training.steps must be an integer"),
        ("peak_rate = 0.03", "peak_rate = 0", "above 0"),
        ("peak_rate = 0.03", "peak_rate = inf", "a finite number"),
        ("constant_steps = 100", "constant_steps = 0", "at least 1"),
        ("evaluate_every = 100", "evaluate_every = 0", "at least 1"),
        (
            'norms = "auto"',
            'norms = "blok"',
            "one of auto, block, calibrated, joint",
        ),
        ('"carry"', '"keep"', "optimizer_state must be one of carry, reset"),
        ('off_diagonal = "zeros"', 'off_diagonal = "paired"', "one of zeros, random."),
        ("noise_scale = 0.1", "noise_scale = -1", "at least 0"),
        ("noise_scale = 0.1", "off_diagonal_scale = -1", "noise_scale .* at least 0"),
        ("noise_scale = 0.1", "noise = 0.1", "fusion lacks noise_scale"),
        ('tasks = ["builtin"]', 'tasks = "builtin"', "a list of texts"),
        (
            "seeds = 3",
            "seeds = 0",
            "tables.T5-M.seeds must be an integer of at least 1",
        ),
        ("[tables.T5-M", '[tables."T5/M"', "can be part of a file's name"),
        ('"from scratch" = "M"', '"from scratch" = 5', "must be a tree"),
        ('"from scratch" = "M"', '"from scratch" = "M("', "was never closed"),
        ("[training]", "[trainings]", "A recipe lacks training"),
        ("[training]", "[more]\n[training]", "unknown entries: more"),
        ("[text]", "[text", "is not one: Expected"),
        ("[text]", "\udcff", "is not one: 'utf-8' codec"),
    ],
)
def test_recipes_are_checked_entry_by_entry(tmp_path, old, new, message):
    text = (recipe.FOLDER / "tiny.toml").read_text()
    assert old in text
    path = tmp_path / "broken.toml"
    path.write_bytes(text.replace(old, new, 1).encode("utf-8", "surrogateescape"))
    with pytest.raises(FusionError, match=f"(?s)broken.toml.*{message}"):
        recipe.load(str(path))


def test_recipes_of_earlier_versions_have_a_vocabulary_of_their_own_kind(tmp_path):
    """They say nothing of bytes, which a small vocabulary has no room for."""
    text = (recipe.FOLDER / "tiny.toml").read_text()
    earlier = "\n".join(
        line
        for line in text.splitlines()
        if not line.startswith(("byte_fallback", "vocabulary_coverage"))
    )
    path = tmp_path / "earlier.toml"
    for size, uses_bytes in ((300, False), (543, False), (544, True), (1024, True)):
        path.write_text(earlier.replace("size = 1024", f"size = {size}"))
        assert recipe.load(str(path)).text.uses_bytes is uses_bytes
    assert recipe.load("tiny").text.uses_bytes


@pytest.fixture
def finished(tmp_path):
    """A store whose results are as a training writes them, for trees of seven."""
    kept = store.Store(tmp_path)
    trees = "L(M(S, S), M(S, S))", SEVEN_TRAININGS, "L", "L(2*M)"
    seconds = {"S": 60.0, "M": 120.0, "L": 600.0}
    for node in trainings(map(parse, trees)):
        late = 30.0 if node.name == "S3" else 0.0
        kept.entry(0, node).write(
            "result",
            {
                "seed": 0,
                "parameters": 7,
                "start": started(node),
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


def started(node):
    """What is known of a node's fusion."""
    ensemble = {"ensemble_loss": 4.1} if len(node.parents) > 1 else {}
    return {"mean_change": 0.1} | ensemble if node.parents else {}


def spent_in(store):
    """What the finished trainings of seed 0 took."""
    return lambda node: Spent.of(store.entry(0, node).result())


def test_costs_of_a_tree(finished):
    found = cost(parse("L(M(S, S), M(S, S))"), spent_in(finished))
    assert found.own_flops == 10 * len("L(M(S1,S2),M(S3,S4))")
    assert found.flops == found.own_flops + 10 * (4 * 2 + 2 * len("M(S1,S2)"))
    assert found.hours_in_series * 3600 == pytest.approx(4 * 60 + 30 + 2 * 120 + 600)
    assert found.accelerator_hours == pytest.approx(2 * found.hours_in_series)
    # The longest way leads over S3.
    assert found.hours_in_parallel * 3600 == pytest.approx(90 + 120 + 600)


def test_a_self_fusion_pays_its_parent_once(finished):
    found = cost(parse("L(2*M)"), spent_in(finished))
    assert found.flops - found.own_flops == 10 * len("M1")


def test_tables_say_what_was_measured(finished, tmp_path):
    gathered = results.collect(TINY, finished)
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
        f"| seven trainings | `{SEVEN_TRAININGS}` | 1 | 4.100 | 4.000 | 1e-01 | 2.000"
        in text
    )
    assert "fusion property kept" in text
    assert "off_diagonal=random" not in text  # it has not finished
    page = tmp_path / "page.md"
    begin, end = "<!-- tables begin -->", "<!-- tables end -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    markdown.insert("new", page)
    assert page.read_text() == (f"before\n{begin}\n\nnew\n{end}\nafter\n")
    with pytest.raises(ValueError, match="page.md' needs the lines"):
        page.write_text("nothing")
        markdown.insert("new", page)


def test_cells_stay_in_their_table():
    text = markdown.table(("a|b", "c"), [("1\n2", "|")])
    assert text.splitlines() == ["| a\\|b | c |", "| --- | --- |", "| 1 2 | \\| |"]


def test_without_a_baseline_there_is_no_share_of_it(finished):
    gathered = results.collect(recipe.load("tiny"), finished)
    table = gathered["tables"]["T5-L"]
    assert "| never |" not in tables.costs(table)
    table["settings"][table["baseline"]]["runs"] = []
    assert "never" not in tables.costs(table)


def test_pictures_of_few_of_many_and_of_diverged_trainings(finished, tmp_path):
    gathered = results.collect(recipe.load("tiny"), finished)
    settings = gathered["tables"]["T5-L"]["settings"]
    scratch = settings["from scratch"]
    gathered["tables"] = {"T5-L": gathered["tables"]["T5-L"]}
    for found in (
        {"from scratch": scratch},  # none is fused
        {f"setting {i}": scratch for i in range(11)},  # more than there are colours
    ):
        gathered["tables"]["T5-L"]["settings"] = found
        (path,) = plots.draw(gathered, tmp_path / "drawn")
        assert path.stat().st_size > 10_000
    run = scratch["runs"][0]
    run["loss"] = run["points"][-1]["loss"] = float("nan")
    (path,) = plots.draw(gathered, tmp_path / "drawn")
    shorter = run | {"points": run["points"][:-1]}
    scratch["runs"].append(shorter)
    with pytest.raises(FusionError, match="evaluated after different steps"):
        plots.draw(gathered, tmp_path / "drawn")
