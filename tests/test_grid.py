"""Grids: any number of axes, any range, never assumed square."""

import numpy as np
import pytest

import jaxscape as js


def test_points_run_over_the_last_axis_first():
    grid = js.Grid(([3.0, 1.0], [0.0], [5.0, 6.0, 7.0]))
    assert grid.shape == (2, 1, 3)
    assert grid.names == ("alpha", "beta", "axis2")
    np.testing.assert_array_equal(grid.points(), [(a, b, c) for a in (3, 1) for b in (0,) for c in (5, 6, 7)])


def test_ranges_may_start_or_end_at_zero():
    np.testing.assert_array_equal(js.Grid.line(0, 2, 3).axes[0], [0, 1, 2])
    assert js.Grid.plane((-1, 0, 3), (0, 1, 2)).shape == (3, 2)


def test_defaults():
    assert js.Grid.line().shape == (401,)
    assert js.Grid.plane().shape == (51, 51)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: js.Grid(()), "grid has no axes"),
        (lambda: js.Grid(([],)), r"grid axis alpha has shape \(0,\), expected a 1-D array"),
        (lambda: js.Grid(([[0.0]],)), r"grid axis alpha has shape \(1, 1\)"),
        (lambda: js.Grid(([0.0], [1.0, np.nan])), "grid axis beta has 1 NaN or infinite points"),
        (lambda: js.Grid(([0.0, 1.0, 0.0],)), "grid axis alpha repeats 0.0"),
        (lambda: js.Grid.line(0, 1, 0), "num a positive integer"),
        (lambda: js.Grid.plane((0, 1)), r"expected a tuple \(start, stop, num\)"),
        (lambda: js.Grid.plane(-1, 1, 5), r"grid axis -1: expected a tuple .* alone js.Grid.line"),
        (lambda: js.Grid.plane((0, 1, 2.5)), "num a positive integer"),
    ],
)
def test_bad_grids(make, match):
    with pytest.raises(ValueError, match=match):
        make()
