"""The momentum of Big Vision's Adafactor is kept in bfloat16, where that is asked for."""

from __future__ import annotations

import pytest
import torch
from harness import parameters, through_disk, train

import hfoptim


@pytest.mark.parametrize(
    ("dtype", "options", "kept"),
    [
        (torch.float32, {}, torch.bfloat16),
        (torch.float32, {"momentum_dtype": torch.float32}, torch.float32),
        (torch.bfloat16, {"momentum_dtype": "bfloat16"}, torch.bfloat16),
        (torch.float64, {}, torch.float64),
    ],
)
def test_what_the_momentum_is_kept_in(dtype, options, kept):
    params = parameters(("vector", "wide"), dtype)
    optimizer = hfoptim.AdafactorBigVision(list(params.items()), lr=1e-2, min_dim_size_to_factor=4, **options)
    train(optimizer, params, range(1, 4))
    state = optimizer.state[params["wide"]]
    assert state["exp_avg"].dtype is kept
    assert state["exp_avg_sq_r"].dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    again = hfoptim.AdafactorBigVision(list(params.items()), lr=1e-2, min_dim_size_to_factor=4, **options)
    again.load_state_dict(through_disk(optimizer.state_dict()))
    loaded = again.state[params["wide"]]["exp_avg"]
    assert loaded.dtype is kept
    assert torch.equal(loaded, state["exp_avg"])


@pytest.mark.parametrize("value", ["float16", torch.float16, "half"])
def test_other_dtypes_are_refused(value):
    with pytest.raises(ValueError, match=r"momentum_dtype.*(float16|half).*not known"):
        hfoptim.AdafactorBigVision([torch.nn.Parameter(torch.ones(2))], momentum_dtype=value)
