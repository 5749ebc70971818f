"""Studies and measurements of keras_fusion, run from a clone: see README.md."""
