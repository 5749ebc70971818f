"""Analyses of a growth: reports, FLOPs, dynamics and pictures."""
