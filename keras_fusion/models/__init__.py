"""Reads models: their layers, their graph, their rules, their function on a probe.

Importing the package loads the rules of Keras's and keras-hub's layers, so that the
registry is never used without them.
"""

from keras_fusion.models import keras_hub_rules, keras_rules

__all__ = ["keras_hub_rules", "keras_rules"]
