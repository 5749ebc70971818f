"""Training steps compiled for TPUs by their real compiler; needs libtpu and JAX."""

import importlib.util

import keras
import pytest

if keras.config.backend() != "jax" or importlib.util.find_spec("libtpu") is None:
    pytest.skip("needs libtpu, and JAX as backend", allow_module_level=True)

import keras_hub

from experiments.tpu import __main__ as command
from experiments.tpu import models, tables

PAIR = models.Pair(
    "small",
    "large",
    lambda size: keras_hub.models.LlamaCausalLM(
        keras_hub.models.LlamaBackbone(
            vocabulary_size=256,
            num_layers=1,
            num_query_heads=2 if size == "small" else 4,
            num_key_value_heads=2 if size == "small" else 4,
            hidden_dim=128 if size == "small" else 256,
            intermediate_dim=256 if size == "small" else 512,
        ),
        preprocessor=None,
    ),
    lambda devices: devices,
    {"token_ids": 64, "padding_mask": 64},
    64,
)


@pytest.fixture
def pod(monkeypatch):
    monkeypatch.setitem(command.PODS, "v5e:2x2", (2, 2))
    keras.config.set_dtype_policy("mixed_bfloat16")
    return "v5e:2x2"


@pytest.mark.core
def test_kernels_and_tables_are_split_over_the_pod(pod):
    model = PAIR.untrained("small")
    split = command.distribution("ModelParallel", pod)
    whole = [
        variable.path
        for variable in model.variables
        if "norm" not in variable.path
        and None in split.get_variable_layout(variable).axes[:2]
        and "attention_output" not in variable.path
    ]
    assert not whole


@pytest.mark.core
@pytest.mark.parametrize("sharding", command.SHARDINGS)
def test_a_grown_step_is_the_native_step(pod, sharding, tmp_path):
    steps = dict(command.steps(PAIR, pod, sharding))
    small, grown, native = steps.values()
    # The compiler gets the same program, so that no figure of it can differ.
    assert grown.program == native.program != small.program
    found = native.figures()
    assert found["host_transfers"] == 0
    assert found["flops"] > 2 * small.figures()["flops"]
    assert found["collectives"]
    assert found["peak"] >= found["arguments"]
    # The compiler counts the state that the step returns; it pads small variables.
    assert grown.predicted == pytest.approx(native.predicted, rel=1e-3)
    assert native.predicted == pytest.approx(found["outputs"], rel=0.05)
    found["predicted"] = native.predicted
    text = tables.table({f"large | {sharding} | {pod}": found})
    assert f"| large | {sharding} | {pod} |" in text


@pytest.mark.core
def test_a_growth_is_made_by_the_devices_of_the_pod(pod, tmp_path):
    found = command.grown(PAIR, pod, "ModelParallel")
    assert found["host_transfers"] == 0 and found["devices"] > 0
    assert found["collectives"]["all-gather"] > 0
    # Beside the two models there is little.
    assert found["temporaries"] < 0.2 * found["grown"]
    page = tmp_path / "page.md"
    page.write_text("<!-- tpu-growths begin -->\n<!-- tpu-growths end -->\n")
    tables.insert_growths({f"small to large | ModelParallel | {pod}": found}, page)
    assert f"| small to large | ModelParallel | {pod} |" in page.read_text()
