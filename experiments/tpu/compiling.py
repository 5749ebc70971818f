"""A training step compiled for a pod of TPUs, and what the compiler says of it."""

import collections
import hashlib
import os
import re
import time
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import topologies

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
)
# What libtpu asks of a machine that has no TPU.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # There is no TPU that two processes could fight for.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# What a compilation gets that fails with collectives which overlap in memory.
WITHOUT_FUSION = {"xla_tpu_enable_async_collective_fusion": "false"}
# Bytes. The memory of one v5e chip.
CHIP_BYTES = 16 * 2**30


def devices(pod: str) -> np.ndarray:
    """The devices of a pod such as `"v5e:4x4"`, of which this machine has none."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    described = topologies.get_topology_desc(platform="tpu", topology_name=pod)
    return np.array(described.devices)


class Step:
    """The training step of `fit`, traced for a distribution, with shapes for values.

    Args:
        model: compiled model, the state of whose training step is built.
        batch: nested structure of `KerasTensor`s.
        distribution: `keras.distribution.DataParallel` or `ModelParallel`.
        predicted: int. The bytes of the model and its optimizer on one device, as
            predicted.
    """

    def __init__(
        self, model: keras.Model, batch: Any, distribution: Any, predicted: int
    ):
        self.distribution, self.predicted = distribution, predicted
        variables = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        state: Any = tuple([self._variable(v) for v in group] for group in variables)
        shardings = jax.tree.map(lambda x: x.sharding, state)
        # As in `JAXTrainer.make_train_function`.
        function = jax.jit(
            model.train_step, donate_argnums=0, out_shardings=(None, shardings)
        )
        keras.distribution.set_distribution(distribution)
        try:
            data = keras.tree.map_structure(self._data, batch)
            self.lowered = function.lower(state, data)
        finally:
            keras.distribution.set_distribution(None)

    def _variable(self, variable: Any) -> jax.ShapeDtypeStruct:
        layout = self.distribution.get_variable_layout(variable)
        return _struct(variable, layout)

    def _data(self, tensor: Any) -> jax.ShapeDtypeStruct:
        return _struct(tensor, self.distribution.get_data_layout(tensor.shape))

    @property
    def program(self) -> str:
        """The SHA-256 digest of the program that the compiler is given."""
        return hashlib.sha256(self.lowered.as_text().encode()).hexdigest()

    def figures(self) -> dict[str, Any]:
        """Compiles the step.

        Returns:
            Dict: bytes on one device (`arguments`, `outputs`, `temporaries`, `peak`),
            `flops` of one device, the `collectives` by kind, `host_transfers`, and the
            `seconds` that compiling took, and the compiler's `options` if it needed some.
            If a device has not the memory: `error`.
        """
        start = time.monotonic()
        try:
            done, options = self._compiled()
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("RESOURCE_EXHAUSTED"):
                raise
            return {"error": str(error).splitlines()[0]}
        memory: Any = done.memory_analysis()
        text = done.as_text() or ""
        kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "peak": memory.argument_size_in_bytes + kept + memory.temp_size_in_bytes,
            "flops": _cost(done)["flops"],
            "collectives": collectives(text),
            "host_transfers": host_transfers(text, memory),
            "seconds": round(time.monotonic() - start, 1),
            **options,
        }

    def _compiled(self) -> tuple[Any, dict[str, Any]]:
        """The compiled step, and the options that it needed."""
        try:
            return self.lowered.compile(), {}
        except jax.errors.JaxRuntimeError as error:
            # A fault of libtpu 0.0.52 with many devices.
            if not ("INTERNAL" in str(error) and "async-collective" in str(error)):
                raise
        return self.lowered.compile(WITHOUT_FUSION), {"options": WITHOUT_FUSION}


def _struct(like: Any, layout: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(layout, "backend_layout", layout)
    return jax.ShapeDtypeStruct(tuple(like.shape), like.dtype, sharding=sharding)


def _cost(done: Any) -> dict[str, float]:
    cost = done.cost_analysis()
    return cost[0] if isinstance(cost, list) else cost


def collectives(text: str) -> dict[str, int]:
    """How often the compiled program talks to other devices, by kind."""
    kinds = "|".join(COLLECTIVES)
    # The start of an asynchronous one counts, its end does not.
    found = re.findall(rf"= .*? ({kinds})(?:-start)?\(", text)
    return dict(sorted(collections.Counter(found).items()))


def host_transfers(text: str, memory: Any) -> int:
    """Operations of the compiled program that reach the host, or its memory."""
    operations = re.findall(r"= .*? (infeed|outfeed|send|recv)(?:-start)?\(", text)
    held = (
        memory.host_argument_size_in_bytes
        + memory.host_output_size_in_bytes
        + memory.host_temp_size_in_bytes
    )
    return len(operations) + bool(held)
