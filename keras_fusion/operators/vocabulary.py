"""Growth of what a model knows by number: the tokens of its vocabulary, and its classes."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_fusion.architecture import outer_sizes
from keras_fusion.architecture.outer_sizes import Holder
from keras_fusion.models.names import helpful
from keras_fusion.operators.row_growth import RowGrowth


@keras.saving.register_keras_serializable(package="keras_fusion")
class VocabularyGrowth(RowGrowth):
    """Adds tokens to the vocabulary of a model.

    The token embedding gets rows after the old ones, and so does the head, tied or not.
    The logits of the old tokens do not change; after a softmax, the ratios of their
    probabilities do not. The optimizer's first moments of new rows are zero, its second
    moments the mean of the old ones'.

    The layers that grow are, in functional and `Sequential` models, the embeddings and
    the layers of as many units that make an output; in subclassed models, keras-hub's
    among them, those whose size the config key `vocabulary_size` or `vocab_size` sets.
    The tokenizer is not part of the model: give a keras-hub task the new one yourself.

    Args:
        vocabulary_size: int. The number of tokens after the growth. By default as many
            new ones as `pieces` or `rows` have.
        pieces: for each new token, the ids of the old tokens that it is made of, such as
            `[tokenizer(word) for word in new_words]`, or the two parts of each merge of a
            byte-pair encoding, which may be earlier new tokens. The new rows are the
            means of the rows of these. By default a new row is the mean of all old ones.
        rows: array of shape `(new tokens, embedding size)`, the new rows of the
            embeddings. The rows of an untied head are then means of the old ones.
        only: names of layers, or of keys of their configs, or patterns of such, if not
            all embeddings of a model grow.
        probe: batch in the structure of the model's inputs, on which the growth is
            checked. By default a small random one is generated. Not part of the config.

    Raises:
        FusionError: for arguments that cannot work; from `plan`, for a model that does
            not tell where its vocabulary is.

    Example: two tokens, the second made of the first and another one.

    >>> import keras, keras_fusion
    >>> model = keras.Sequential([keras.Input((4,), dtype="int32")])
    >>> model.add(keras.layers.Embedding(10, 8))
    >>> model.add(keras.layers.Dense(10))
    >>> more = keras_fusion.VocabularyGrowth(pieces=[[2, 3], [10, 4]])
    >>> event = keras_fusion.grow(model, more, verbose=0)
    >>> [tuple(v.shape) for v in model.weights], event.function_change < 1e-6
    ([(12, 8), (8, 12), (12,)], True)

    Source: means of all rows: Hewitt, Initializing New Word Embeddings for Pretrained
    Language Models, 2021; of pieces: Gee et al., Fast Vocabulary Transfer for Language
    Model Compression, EMNLP 2022.
    """

    _names = ("vocabulary_size", "pieces")
    _axis = 0

    @helpful
    def __init__(
        self,
        vocabulary_size: int | None = None,
        pieces: Sequence[Sequence[int]] | None = None,
        rows: Any = None,
        only: str | Sequence[str] | None = None,
        probe: Any = None,
    ):
        super().__init__(vocabulary_size, pieces, rows, only, probe)
        self.vocabulary_size, self.pieces = self._size, self._like

    def _holders(self, model: keras.Model) -> list[Holder]:
        return outer_sizes.of_vocabulary(model, self._only)

    def __str__(self):
        """A short name of the operator, for the console."""
        return f"vocabulary of {self._told_size()} tokens"


@keras.saving.register_keras_serializable(package="keras_fusion")
class ClassGrowth(RowGrowth):
    """Adds classes to a classifier.

    The head gets more units. The logits of the old classes do not change; after a
    softmax, the ratios of their probabilities do not.

    The head is, in functional and `Sequential` models, the last layer with weights; in
    subclassed models, keras-hub's classifiers among them, the layer whose size the
    config key `num_classes` (or `num_labels`, `classes`) sets.

    Args:
        classes: int. The number of classes after the growth. By default as many new ones
            as `like` or `rows` have.
        like: for each new class the old ones that it is like, by number: `[[3], [0, 1]]`.
            Its weights are the means of theirs. By default those of all.
        rows: array of shape `(new classes, features)`, the new units' weights.
        only: names of layers, or of keys of their configs, or patterns of such, if a model
            has several heads.
        probe: batch in the structure of the model's inputs, on which the growth is
            checked. By default a small random one is generated. Not part of the config.

    Raises:
        FusionError: for arguments that cannot work; from `plan`, for a model that does
            not tell where its classes are.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(3, activation="softmax"))
    >>> event = keras_fusion.grow(model, keras_fusion.ClassGrowth(5), verbose=0)
    >>> model.output_shape, event.function_change < 1e-6
    ((None, 5), True)
    """

    _names = ("classes", "like")
    _axis = -1

    @helpful
    def __init__(
        self,
        classes: int | None = None,
        like: Sequence[Sequence[int]] | None = None,
        rows: Any = None,
        only: str | Sequence[str] | None = None,
        probe: Any = None,
    ):
        super().__init__(classes, like, rows, only, probe)
        self.classes, self.like = self._size, self._like

    def _holders(self, model: keras.Model) -> list[Holder]:
        return outer_sizes.of_classes(model, self._only)

    def __str__(self):
        """A short name of the operator, for the console."""
        return f"{self._told_size()} classes"
