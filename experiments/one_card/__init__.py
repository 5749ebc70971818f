"""A study that fits into eight minutes of one accelerator."""
