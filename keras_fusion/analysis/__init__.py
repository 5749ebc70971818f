"""Looking at a growth: reports, FLOPs, dynamics and pictures."""
