"""A fuzz: random models of all layers of Keras and of its operations, grown and judged."""
