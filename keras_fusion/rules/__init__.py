"""Layer knowledge as data: one module for Keras's layers, one for keras-hub's."""
