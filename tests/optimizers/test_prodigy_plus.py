"""Prodigy plus schedule-free: an estimate for each parameter group, or one for all."""

from __future__ import annotations

import pytest
import torch
from harness import assert_moved, assert_same, feed, parameters, values

import hfoptim

NAMES = ("matrix", "vector")


def made(groups, **options):
    return hfoptim.ProdigyPlusScheduleFree(groups, d0=1e-2, weight_decay=0.1, **options)


def test_each_group_has_its_own_estimate():
    """Two groups are two optimizers."""
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    start = values(mine)
    together = made([{"params": [mine[name]]} for name in NAMES])
    apart = [made([other[name]]) for name in NAMES]
    for t in range(1, 21):
        only = NAMES if t % 5 else NAMES[:1]  # a group without gradients stays as it is
        feed(mine, t, only=only)
        feed(other, t, only=only)
        together.step()
        for optimizer in apart:
            optimizer.step()
    assert_same(values(mine), values(other))
    assert_moved(mine, start)
    found = [group["d"] for group in together.param_groups]
    assert found == [optimizer.param_groups[0]["d"] for optimizer in apart]
    assert found[0] != found[1]


def test_without_split_groups_there_is_one_estimate():
    """Two groups are one."""
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    two = made([{"params": [mine[name]]} for name in NAMES], split_groups=False)
    one = made(list(other.values()), split_groups=False)
    for t in range(1, 21):
        feed(mine, t)
        feed(other, t)
        two.step()
        one.step()
    for name in NAMES:
        torch.testing.assert_close(mine[name], other[name], rtol=1e-11, atol=1e-12)
    assert two.param_groups[0]["d"] == two.param_groups[1]["d"] > 1e-2
    with pytest.raises(ValueError, match=r"d_coef=2\.0 in one group and 1\.0 in another"):
        two.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "d_coef": 2.0})
