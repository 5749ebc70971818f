"""Training steps compiled for TPU pods on a machine without one: see `__main__.py`."""
