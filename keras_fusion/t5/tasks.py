"""Opens a task by its name."""

from keras_fusion.errors import FusionError
from keras_fusion.t5.builtin_task import builtin
from keras_fusion.t5.glue import GLUE, glue
from keras_fusion.t5.text_task import TextTask

NAMES = ("builtin", *GLUE)


def open_task(name: str) -> TextTask:
    """Opens a task by its name.

    Args:
        name: `"builtin"`, which needs no download, or the name of a task of GLUE in
            tensorflow-datasets: `"cola"`, `"sst2"`, `"mrpc"`, `"qqp"`, `"stsb"`, `"mnli"`,
            `"mnli_matched"`, `"mnli_mismatched"`, `"qnli"`, `"rte"`, `"wnli"`, `"ax"`.

    Returns:
        A `TextTask`.

    Raises:
        FusionError: if there is no such task.

    Example:

    >>> from keras_fusion.t5.tasks import open_task
    >>> open_task("builtin").labels
    ('asyncio', 'email', 'http', 'logging', 'unittest', 'xml')
    """
    check_name(name)
    return builtin() if name == "builtin" else glue(name)


def check_name(name: str) -> None:
    """Checks that there is a task of this name.

    Raises:
        FusionError: listing those that there are.
    """
    if name not in NAMES:
        raise FusionError(
            f"A task is one of {', '.join(NAMES)}. Received: name={name!r}."
        )
