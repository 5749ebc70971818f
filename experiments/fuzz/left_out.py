"""The layers of Keras that no random model has, and why."""

LEFT_OUT = {
    "abstract, a wrapper of another framework, or no layer": """FlaxLayer Input InputLayer
    InputSpec JaxLayer Layer Pipeline TFSMLayer TorchModuleWrapper Wrapper GRUCell LSTMCell
    SimpleRNNCell StackedRNNCells ConvLSTM3D""",
    "takes ids, words or audio: at the models' inputs": """CategoryEncoding Embedding
    HashedCrossing Hashing IntegerLookup MelSpectrogram ReversibleEmbedding STFTSpectrogram
    StringLookup TextVectorization MaxNumBoundingBoxes""",
    "changes images, for data pipelines": """AugMix AutoContrast CutMix Equalization
    ContrastLimitedAdaptiveHistogramEqualization MixUp RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
    RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale
    RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation
    RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom
    Solarization""",
}


def left_out() -> set[str]:
    """The names in `LEFT_OUT`."""
    return {name for names in LEFT_OUT.values() for name in names.split()}
