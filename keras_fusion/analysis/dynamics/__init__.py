"""Growth as dynamics, module by module; `keras_fusion.dynamics` has the public names."""
