"""The layout of a growth: which block of each variable belongs to which parent."""
