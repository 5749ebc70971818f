"""A process that grows models under `keras.distribution`, on 8 simulated devices.

Prints, case by case, how far the final weights are from those of a run without
distribution, how the grown variables lie, and what was refused.
"""

import json

import keras
import models
import numpy as np

import keras_fusion
from experiments import sharded_growth

BATCH, STEPS = 8, 4


def model_parallel(*patterns):
    """Variables whose paths match lie over 4 devices, by their last axis."""
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    layouts = keras.distribution.LayoutMap(mesh)
    for pattern in patterns:
        layouts[pattern] = (None, "model")
    return keras.distribution.ModelParallel(layout_map=layouts)


# Of the unnamed layers of a model: a second build would number them anew.
KERNELS = ("subclassed/embedding/embeddings", "subclassed/dense/kernel")


def train(make, distribution=None, operator=None):
    """One epoch with a growth in its middle, from names numbered from the start."""
    keras.backend.clear_session()
    keras.distribution.set_distribution(distribution)
    model = make()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), models.loss())
    operator = operator or keras_fusion.FusionOperator(seed=0)
    grow = keras_fusion.GrowModel(operator, keras_fusion.AtStep(2), verbose=0)
    x, y = models.data_for("functional", BATCH * STEPS)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[grow])
    return model, grow


def specs(model):
    """How each sharded variable and slot lies."""
    variables = [*model.variables, *model.optimizer.variables]
    found = {v.path: str(v.value.sharding.spec) for v in variables}
    return {path: spec for path, spec in found.items() if "model" in spec}


def difference(model, expected):
    pairs = zip(models.values(model), expected, strict=True)
    return max(float(np.max(np.abs(one - other))) for one, other in pairs)


def compared(make, *distributions, operator=None):
    expected = models.values(train(make, None, operator)[0])
    return [report(expected, *train(make, one, operator)) for one in distributions]


def residual():
    """Blocks that can be stacked."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((models.LENGTH,), dtype="int32")
    x = keras.layers.Embedding(models.VOCABULARY, 8)(inputs)
    for _ in range(2):
        x = x + keras.layers.Dense(8, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(models.VOCABULARY)(x))


def by_other_operators():
    """Differences of runs that grow by copies of units, and by copies of blocks."""
    operators = {
        "HyperCloning": keras_fusion.HyperCloning(noise_scale=0.1, seed=0),
        "Net2Net": keras_fusion.Net2Net(seed=0),
        "DepthStacking": keras_fusion.DepthStacking(),
    }
    layout = model_parallel("embedding.*/embeddings", "dense.*/kernel")
    return {
        name: compared(residual, layout, operator=operator)[0]
        for name, operator in operators.items()
    }


def report(expected, model, grow):
    return {
        "difference": difference(model, expected),
        "change": grow.events[0].function_change,
        "specs": specs(model),
    }


def refused():
    """A growth from 8 to 12 features under a mesh of 8: nothing may have changed."""
    mesh = keras.distribution.DeviceMesh((1, 8), ("batch", "model"))
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["sequential/embedding/embeddings"] = (None, "model")
    distribution = keras.distribution.ModelParallel(layout_map=layouts)
    steps = []

    class Steps(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(batch)

    class Refused(keras_fusion.DeepFusion):
        def on_train_begin(self, logs=None):
            before = models.values(self.model)
            try:
                super().on_train_begin(logs)
            finally:
                self.same = difference(self.model, before) == 0.0

    keras.backend.clear_session()
    keras.distribution.set_distribution(distribution)
    model = models.sequential()
    model.compile("sgd", models.loss())
    x, y = models.data_for("sequential")
    partner = models.sequential(width=4, seed=1)
    grow = Refused(at_step=2, partners=[partner], optimizer_state="reset", verbose=0)
    try:
        model.fit(x, y, verbose=0, callbacks=[grow, Steps()])
    except keras_fusion.FusionError as error:
        return {"error": str(error), "steps": steps, "same": grow.same}


def main():
    distributions = keras.distribution.DataParallel(), model_parallel(*KERNELS)
    data, model = compared(models.subclassed, *distributions)
    reports = {
        "data_parallel": data,
        "model_parallel": model,
        "operators": by_other_operators(),
        "refused": refused(),
        "memory": sharded_growth.measure(width=512),
    }
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
