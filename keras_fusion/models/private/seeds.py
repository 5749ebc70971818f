"""The states of the random generators that a model draws from."""

import keras
from keras.src.backend.common import global_state


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """The states of a model's own generators, and of Keras's global one if it exists."""
    generator = global_state.get_global_attribute("global_seed_generator")
    shared = [] if generator is None else [generator.state]
    own = [v for v in model.variables if v.path.endswith("seed_generator_state")]
    return [*own, *shared]
