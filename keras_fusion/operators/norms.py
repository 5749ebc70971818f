"""What becomes of the norms in a fusion of distinct parents."""

import warnings
from typing import Any

from keras_fusion.architecture.parents import Match
from keras_fusion.errors import FusionError
from keras_fusion.models import samples
from keras_fusion.models.parent_wise import decision_of
from keras_fusion.models.stock import is_block_norm
from keras_fusion.operators.plan import Draft
from keras_fusion.values import calibration
from keras_fusion.values.calibration import Corrections


def are_block_wise(norms: str, *, copies: bool) -> bool:
    """Whether norms become block-wise; copies need that only where it is asked for."""
    return norms == "block" or (norms == "auto" and not copies)


def settled(
    draft: Draft,
    norms: str,
    probe: Any,
    others: str = "'auto', 'calibrated' or 'joint'",
) -> tuple[Corrections, bool]:
    """The corrections of norms that are not block-wise, and whether none is needed.

    Args:
        draft: the `Draft` of a fusion.
        norms: `"auto"`, `"block"`, `"calibrated"` or `"joint"`.
        probe: inputs to measure norms on; for `"auto"` a made-up batch by default.
        others: string. What an error offers in place of `"block"`.

    Returns:
        The corrections, and whether the fused outputs are the mean of the parents'.

    Raises:
        FusionError: for `"block"`, if something stands against it.
    """
    reasons = _reasons(draft)
    if norms == "block" and reasons:
        raise FusionError(f"{reasons[0]} Use norms={others}.")
    if draft.parents.copies:
        return {}, True  # Their joint statistics are their own.
    calibrated = norms == "calibrated" or (norms == "auto" and bool(draft.stock))
    found: Corrections = {}
    if calibrated:
        probe = samples.accepted(draft.parents.first) if probe is None else probe
        found = calibration.corrections(draft.matches, draft.layouts, probe)
    if norms == "auto" and reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        what = " Norms that cannot be block-wise are calibrated." * bool(draft.stock)
        warnings.warn(
            f"The fusion is not exact. {reasons[0]}{more}{what}", stacklevel=2
        )
    joint = any(calibration.is_joint(x) or _decides_jointly(x) for x in draft.matches)
    return found, not reasons and not joint


def _decides_jointly(match: Match) -> bool:
    """Whether a layer decides for the features of all parents at once."""
    return decision_of(match.grown) is not None and not is_block_norm(match.grown)


def _reasons(draft: Draft) -> list[str]:
    """Sentences on what of the fusion cannot be exact."""
    found, distinct = [], not draft.parents.copies
    for match in draft.matches:
        where = (
            f"{type(match.grown).__name__} {match.grown.name!r} at {match.address!r}"
        )
        rule = match.rule
        if match.address in draft.stock:
            reason = draft.stock[match.address]
            found.append(f"{where} cannot be block-wise: {reason}.")
        elif rule is not None and rule.approximate is not None and distinct:
            found.append(f"{where} cannot be fused exactly: {rule.approximate}.")
    return found
