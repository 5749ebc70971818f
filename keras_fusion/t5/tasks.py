"""Opens a task by its name."""

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
        ValueError: if there is no such task.

    Example:

    >>> from keras_fusion.t5.tasks import open_task
    >>> open_task("builtin").labels
    ('asyncio', 'email', 'http', 'logging', 'unittest', 'xml')
    """
    if name not in NAMES:
        raise ValueError(
            f"A task is one of {', '.join(NAMES)}. Received: name={name!r}."
        )
    return builtin() if name == "builtin" else glue(name)
