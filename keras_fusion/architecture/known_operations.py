"""The list of the operations whose effect on named axes is known."""

from keras_fusion.architecture import operations as effects
from keras_fusion.architecture import rearrangements as places
from keras_fusion.architecture.operations import Effect

_ELEMENTWISE = """
Abs Absolute Add Angle Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh BitwiseAnd
BitwiseInvert BitwiseNot BitwiseOr BitwiseXor Cast Cbrt Ceil Celu Clip Conjugate Copy Cos
Cosh Deg2rad Divide DivideNoNan Elu Equal Erf Erfc Erfinv Exp Exp2 Expm1 Fabs Floor
FloorDivide Fmax Fmin Fmod Gelu Greater GreaterEqual HardShrink HardSigmoid HardSilu
HardTanh Heaviside Hypot Imag Isclose Isfinite Isinf Isnan Isneginf Isposinf LeakyRelu
Less LessEqual Log Log10 Log1p Log2 LogSigmoid Logaddexp Logaddexp2 LogicalAnd LogicalNot
LogicalOr LogicalXor Maximum Minimum Mod Multiply NanToNum Negative Nextafter NotEqual
OnesLike Power Rad2deg Real Reciprocal Relu Relu6 Round Rsqrt SaturateCast Select Selu
Sigmoid Sign Signbit Silu Sin Sinc Sinh SoftShrink Softplus Softsign SparsePlus
SparseSigmoid Sqrt Square Squareplus StopGradient Subtract Tan Tanh TanhShrink Threshold
TrueDivide Trunc Where ZerosLike
"""
_REDUCTIONS = """
All Amax Amin Any Argmax Argmin CountNonzero Logsumexp Max Mean Median Min Nanargmax
Nanargmin Nanmax Nanmean Nanmedian Nanmin Nanprod Nanstd Nansum Nanvar Norm Prod Ptp Std
Sum Var
"""
_ALONG = """
Argsort Cumprod Cumsum Flip LogSoftmax Nancumprod Nancumsum Normalize Roll Softmax Sort
Sparsemax TopK
"""

KNOWN: dict[str, Effect] = {
    **dict.fromkeys(_ELEMENTWISE.split(), effects.elementwise),
    **dict.fromkeys(_REDUCTIONS.split(), effects.reduction),
    **dict.fromkeys(_ALONG.split(), effects.along_axis),
    **dict.fromkeys(("Pad", "Repeat"), effects.untouched),
    **dict.fromkeys(("ExpandDims", "Reshape", "Squeeze"), places.reshape),
    "Concatenate": places.concatenation,
    "Einsum": effects.einsum,
    "GetItem": places.item,
    "Glu": places.gate,
    "Matmul": effects.matmul,
    "Moveaxis": places.moveaxis,
    "OneHot": effects.one_hot,
    "Split": places.split,
    "Stack": places.stack,
    "Swapaxes": places.swapaxes,
    "Take": places.take,
    "Tile": places.tile,
    "Transpose": places.transpose,
    "Unstack": places.unstack,
}
