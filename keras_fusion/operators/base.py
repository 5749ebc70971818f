"""How to grow: operators, of which `GrowModel` asks for a plan when the time comes."""

import dataclasses
from collections.abc import Callable

import keras

from keras_fusion.operators.plan import Plan


@dataclasses.dataclass(frozen=True)
class Method:
    """A growth operator as the literature knows it, for `known_operators`.

    Args:
        cls: the operator's class.
        grows: `"width"`, `"depth"` or `"both"`.
        exact: string. When the function is preserved.
        source: string. Who published it.
    """

    cls: type
    grows: str
    exact: str
    source: str


_METHODS: dict[str, Method] = {}


def register_operator(grows: str, *, exact: str, source: str) -> Callable[[type], type]:
    """Decorator that puts an operator class into the table of `known_operators`.

    It is made serializable too, and every test of operators runs on it.

    Args:
        grows: `"width"`, `"depth"` or `"both"`.
        exact: string. When the function is preserved.
        source: string. Who published the method.

    Returns:
        The decorator.

    Example:

    ```python
    @keras_fusion.register_operator("width", exact="always", source="me, 2026")
    class Wider(keras_fusion.GrowthOperator): ...
    ```

    >>> import keras_fusion
    >>> keras_fusion.known_operators()["HyperCloning"].grows
    'width'
    """

    def register(cls):
        _METHODS[cls.__name__] = Method(cls, grows, exact, source)
        return keras.saving.register_keras_serializable(package="keras_fusion")(cls)

    return register


def known_operators() -> dict[str, Method]:
    """All growth operators by the names of their classes.

    Returns:
        Dict from the name to a record with the class as `cls`, and `grows`, `exact` and
        `source`.

    Example:

    >>> import keras_fusion
    >>> keras_fusion.known_operators()["ZeroPadding"].exact
    'always, or it is refused'
    """
    return dict(_METHODS)


class GrowthOperator:
    """Base of all operators: how a model grows, whatever the moment.

    Subclass it to grow in another way: `plan` says how, and `get_config` makes the
    operator serializable.

    Example:

    >>> import keras, keras_fusion
    >>> class Tripled(keras_fusion.GrowthOperator):
    ...     def plan(self, model):
    ...         return keras_fusion.HyperCloning(factor=3).plan(model)
    >>> grow = keras_fusion.GrowModel(Tripled(), keras_fusion.AtStep(1000))
    """

    def parents(self, model: keras.Model) -> list[keras.Model]:
        """The models whose state goes into the grown one, the live model first."""
        return [model]

    def plan(self, model: keras.Model) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        raise NotImplementedError(f"{type(self).__name__} has no `plan` yet.")

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Rebuilds the operator from `get_config`."""
        return cls(**config)
