"""Per variable of the grown model: which block of which parent lies where."""
