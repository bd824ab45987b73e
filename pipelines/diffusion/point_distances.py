"""How far two sets of points are from one law."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipelines.metrics.distances import Discrepancy, Estimate, bootstrap_interval


def energy_distance(x: Tensor, y: Tensor, *, seed: int = 0) -> Estimate:
    """Return 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two sets of points, with its bootstrap interval.

    Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018, as the unbiased estimate: 0 on average where the laws are
    equal, and then negative about half of the time. x: (n, D), y: (m, D).
    """
    pair = Discrepancy(*(-torch.cdist(a.double(), b.double()).numpy() for a, b in ((x, x), (y, y), (x, y))))
    return bootstrap_interval(pair, pair.sizes, seed=seed, num_resamples=200)


def sliced_wasserstein(x: Tensor, y: Tensor, *, num_directions: int = 64) -> float:
    """Return the mean over directions of the plane of the Wasserstein distance (order 1) of the projected points.

    Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3. x, y: (n, 2), as many points in both.
    """
    assert len(x) == len(y), f"found {len(x)} and {len(y)} points, expected as many in both"
    angles = torch.arange(num_directions, dtype=torch.float64) * math.pi / num_directions
    directions = torch.stack([angles.cos(), angles.sin()])
    ordered = [(points.double() @ directions).sort(0).values for points in (x, y)]
    return float((ordered[0] - ordered[1]).abs().mean())
