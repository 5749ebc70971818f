"""Growth inside `fit`: when, in which order, on record, and resumed after a kill."""
