"""The growth itself compiled for a pod: the programs that fill the bigger model there.

There is one program per shape and sharding of a variable or of a slot of its optimizer.
While one runs, a device holds the small model, what has grown so far, and the program's
own memory.
"""

from collections.abc import Iterator
from typing import Any

import jax
import keras
import numpy as np

import keras_fusion
from experiments.tpu.compiling import collectives, host_transfers
from keras_fusion import graft
from keras_fusion.values import on_devices
from keras_fusion.values.device_programs import Call, arguments_of, program
from keras_fusion.values.device_statistics import Statistic, summing
from keras_fusion.values.slots import rules_of


def figures(growth: keras_fusion.Plan, distribution: Any) -> dict[str, Any]:
    """Compiles the programs of a growth.

    Args:
        growth: `keras_fusion.Plan` of a compiled model with a built optimizer, whose
            variables have no values.
        distribution: `keras.distribution.Distribution` over the pod's devices.

    Returns:
        Dict: bytes on one device of the small model and its optimizer (`small`), of the
        grown ones (`grown`), of the largest program's own memory (`temporaries`), the
        `ratio` of all three to `grown`, the number of `programs`, how many variables
        `devices` make and the `host`, the `collectives`, and `host_transfers`.
    """
    small, fused = growth.parents[0], growth.fused
    calls, count = {}, {True: 0, False: 0}
    with distribution.scope():
        before = graft.device_bytes(small)[0]
        after = graft.device_bytes(fused)[0]
        for call, variable in _calls(growth):
            if len(variable.shape) > 1:
                count[call is not None] += 1
            if isinstance(call, Call):
                calls[call.rule] = call
    compiled = [one for call in calls.values() for one in _compiled(call)]
    memory: list[Any] = [one.memory_analysis() for one in compiled]
    texts = [one.as_text() or "" for one in compiled]
    most = max(m.temp_size_in_bytes for m in memory)
    return {
        "small": before,
        "grown": after,
        "temporaries": most,
        "ratio": (before + after + most) / after,
        "programs": len(calls),
        "devices": count[True],
        "host": count[False],
        "collectives": collectives("\n".join(texts)),
        "host_transfers": sum(map(host_transfers, texts, memory)),
    }


def _calls(growth: keras_fusion.Plan) -> Iterator[tuple[Any, keras.Variable]]:
    """How devices make each variable and slot, and the variable."""
    small, fused = growth.parents[0], growth.fused
    old, new = (graft.read_state(model.optimizer) for model in (small, fused))
    rules = rules_of(fused.optimizer, reset=False)
    places, own = old.positions(), new.positions()
    for index, layout in enumerate(growth.layouts):
        made: Any = on_devices.planned(growth.filler, index, layout)
        yield made, layout.target
        place = places.get(id(layout.sources[0]))
        if place is None:
            continue
        for name in set(new.lists) & set(rules):
            source, target = (
                old.lists[name][place],
                new.lists[name][own[id(layout.target)]],
            )
            if target is None or tuple(target.shape) == () != tuple(
                layout.target.shape
            ):
                continue
            sources = [source] * len(layout.sources)
            yield (
                on_devices.planned_slot(
                    growth.filler, rules[name], layout, sources, target, True
                ),
                target,
            )


def _compiled(call: Call) -> Iterator[Any]:
    """The programs of a variable, whose values and statistics are not known."""
    old = call.rule.old
    struct = jax.ShapeDtypeStruct(old.shape, call.source.dtype, sharding=old.sharding)
    everywhere = jax.sharding.NamedSharding(old.mesh, jax.sharding.PartitionSpec())

    def lowered(function: Any, arguments: Any) -> Any:
        return function.lower(jax.tree.map(described, arguments)).compile()

    def described(value: Any) -> Any:
        if isinstance(value, jax.ShapeDtypeStruct):
            return value
        value = np.asarray(value)
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=everywhere)

    unknown = {n: v for n, v in call.values.items() if isinstance(v, Statistic)}
    values = call.values | dict.fromkeys(unknown, 1.0)
    yield lowered(program(call.rule), arguments_of(call.rule, struct, values))
    if unknown:
        numbers = dict.fromkeys(
            ("shift", "scale", "shift_back", "centre"), np.float32(1)
        )
        given = numbers | {"old": struct, "zero": np.uint32(0)}
        yield lowered(summing(old, call.rule.entries), given)
