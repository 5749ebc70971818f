"""What growing saves: any operator against training from scratch, at equal FLOPs.

`python -m benchmarks.savings` trains what is missing of the study; see `__main__`.
"""
