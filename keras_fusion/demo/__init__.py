"""The demo: two small T5 are trained, fused inside `fit`, and compared with a wide one.

Run it with `python -m keras_fusion.demo`, or `make demo` from a clone. It needs the
extras `nlp` and `plot` and the TensorFlow backend.
"""
