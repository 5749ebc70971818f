"""The methods of growth: each lays out a `Plan`, one file per method."""
