"""What is known of a model: its layers, its graph, its rules, its function on a batch.

Importing the room loads the rules of Keras's and keras-hub's layers, so that the registry
is never looked at without them.
"""

from keras_fusion.models import keras_hub_rules, keras_rules

__all__ = ["keras_hub_rules", "keras_rules"]
