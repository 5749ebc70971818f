"""For each variable of the grown model: which block belongs to which parent."""
