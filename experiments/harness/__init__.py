"""One harness for all studies of what growth saves: models, data, growths, results.

A study is a TOML file in `experiments/studies`; `python -m experiments` trains and
tabulates it.
"""
