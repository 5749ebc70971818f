"""Reads models: their layers, their graph, their rules, their function on a probe.

Importing the package loads the rules of Keras's and keras-hub's layers, so that the
registry is never used without them, and makes files with block norms loadable.
"""

from keras_fusion.models import keras_hub_rules, keras_rules, saved_norms

__all__ = ["keras_hub_rules", "keras_rules", "saved_norms"]
