"""From parents to the bigger model: what must correspond, what grows, and the model."""
