"""The values of a grown model: weights and optimizer slots, from those of the parents."""
