"""Copies of units: where each comes from, and how a kernel shares what it reads."""

import numpy as np

from keras_fusion.layout.axes import Axis, CopiedAxis
from keras_fusion.values import copies


def test_sources_of_axes_that_hold_several_stretches():
    plain = Axis(6, "in", (np.arange(4),))
    np.testing.assert_array_equal(
        copies.copied_axis(plain, copies.in_turn).sources, [0, 1, 2, 3, 0, 1]
    )
    two = Axis(8, "in", (np.array([0, 1, 4, 5]),))
    np.testing.assert_array_equal(
        copies.copied_axis(two, copies.in_turn).sources, [0, 1, 0, 1, 2, 3, 2, 3]
    )
    kept = Axis(3, "in")
    assert copies.copied_axis(kept, copies.in_turn) is kept


def test_shares_of_a_unit_sum_to_one():
    sources = np.array([0, 1, 2, 0, 0, 2])
    np.testing.assert_allclose(copies.shares(sources)[:3], [1 / 3, 1, 1 / 2])
    rng = np.random.default_rng(0)
    uneven = copies.uneven_shares(sources, 0.5, rng)
    np.testing.assert_allclose(np.bincount(sources, uneven), 1.0)
    assert abs(uneven[0] - uneven[3]) > 1e-3


def test_a_kernel_of_copies_reads_copies_as_it_did():
    rng = np.random.default_rng(0)
    kernel, x = rng.standard_normal((5, 3)), rng.standard_normal((7, 5))
    sources = (np.array([0, 1, 2, 3, 4, 2, 2, 0]), np.array([0, 1, 2, 1]))
    axes = (
        CopiedAxis(8, "in", (np.arange(5),), sources=sources[0]),
        CopiedAxis(4, "out", (np.arange(3),), sources=sources[1]),
    )
    for options in ({}, {"noise_scale": 0.3}, {"spread": 0.6}):
        wide = copies.copy_array(kernel, axes, rng=rng, **options)
        expected = (x @ kernel)[:, sources[1]]
        np.testing.assert_allclose(x[:, sources[0]] @ wide, expected, atol=1e-12)
