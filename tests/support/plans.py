"""What the tests read of a plan beside what it lays out."""


def is_exact(plan):
    """Whether a plan promises that the fused model computes what its parents do."""
    return plan.exact
