"""T5 pre-training with Deep Fusion, as in the paper: data, recipes, fusion trees, GLUE.

Run it with `python -m keras_fusion.t5 --help`. It needs the extras `nlp` and `plot`; the
data comes through tf.data on every backend.
"""
