"""Operators: the protocol of growth methods, and the table of those that exist."""

import dataclasses
import inspect
import reprlib
from collections.abc import Callable

import keras

from keras_fusion.errors import FusionError
from keras_fusion.models.names import helpful
from keras_fusion.models.renamed import in_new_names
from keras_fusion.operators.plan import Plan, Plans


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


@helpful
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
    """Base class of operators: how a model grows, at whatever moment.

    An operator has one duty, `plan(model, seed)`. `GrowModel` calls it once when training
    begins, to refuse then what cannot work, and once at each growth. It must change
    nothing: neither the model nor a global random generator. `get_config` makes the
    operator serializable, and is what a resumed run is compared with.

    Example:

    >>> import keras, keras_fusion
    >>> class Tripled(keras_fusion.GrowthOperator):
    ...     def plan(self, model, seed=None):
    ...         return keras_fusion.HyperCloning(factor=3).plan(model, seed)
    >>> grow = keras_fusion.GrowModel(Tripled(), keras_fusion.AtStep(1000))
    """

    def plan(self, model: keras.Model, seed: int | None = None) -> Plan | Plans:
        """Lays out the growth of a model; changes nothing.

        Args:
            model: the built model.
            seed: int. Seed of everything that is drawn at random. By default, one from
                NumPy's global generator, which `keras.utils.set_random_seed` governs.

        Returns:
            A `Plan`; or `Plans`, for growths that follow each other.

        Raises:
            FusionError: for a model that cannot grow in this way.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `plan` yet.")

    def parents(self, model: keras.Model) -> list[keras.Model]:
        """The models whose state goes into the grown one, the live model first."""
        return [model]

    def check_built(self, model: keras.Model) -> None:
        """Checks what only the first batch of `fit` builds; by default nothing.

        Raises:
            FusionError: for a model that cannot grow in this way.
        """

    def notes(self, model: keras.Model) -> list[str]:
        """What `preview` tells of a growth, besides what it sees; by default nothing."""
        return []

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Rebuilds the operator from `get_config`, that of an earlier version too."""
        return cls(**in_new_names(config, inspect.signature(cls).parameters))

    def __repr__(self) -> str:
        options = (
            f"{name}={reprlib.repr(getattr(self, name))}"
            for name in inspect.signature(type(self)).parameters
            if hasattr(self, name)
        )
        return f"{type(self).__name__}({', '.join(options)})"


def check_operator(operator: object, name: str) -> None:
    """Checks that something can lay out a growth.

    Args:
        operator: the object.
        name: string. The argument that it was passed as.

    Raises:
        FusionError: if it has no `plan(model, seed)`.
    """
    try:
        if isinstance(operator, type):
            raise TypeError("It is a class, not an object.")
        inspect.signature(getattr(operator, "plan")).bind("model", 0)  # noqa: B009
    except (TypeError, AttributeError) as error:
        raise FusionError(
            f"`{name}` must be a growth operator, such as FusionOperator(factor=2): an "
            f"object with a method `plan(model, seed)`. Received: {name}={operator!r}."
        ) from error
