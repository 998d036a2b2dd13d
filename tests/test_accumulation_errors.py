"""GradientAccumulator: bad input raises a clear error and changes nothing."""

from __future__ import annotations

import pytest
import torch
from ragged import make_model, ragged_batch, state_of, token_loss
from torch import nn

from hfoptim.training.accumulator import GradientAccumulator

BAD_CALLS = {
    "shape": ([torch.ones(3), torch.ones(2)], ValueError, "Gradient 0 has shape \\(3,\\), expected \\(2,\\)"),
    "second shape": ([torch.ones(2), torch.ones(1, 2)], ValueError, "Gradient 1 has shape"),
    "double": ([torch.ones(2), torch.ones(2).double()], ValueError, "Gradient 1 has dtype torch.float64"),
    "complex": ([torch.ones(2, dtype=torch.complex64), None], ValueError, "Gradient 0 has dtype torch.complex64"),
    "integer": ([torch.ones(2), torch.ones(2, dtype=torch.int64)], ValueError, "Gradient 1 must be floating"),
    "sparse": ([torch.ones(2), torch.ones(2).to_sparse()], ValueError, "Gradient 1 is sparse"),
    "device": ([torch.ones(2), torch.ones(2, device="meta")], ValueError, "Gradient 1 is on meta, expected cpu"),
    "fewer": ([torch.ones(2)], ValueError, "Expected 2 gradients, got 1"),
    "more": ([torch.ones(2)] * 3, ValueError, "Expected 2 gradients, got 3"),
    "none": ([], ValueError, "Expected 2 gradients, got 0"),
    "number": ([torch.ones(2), 1.0], TypeError, "Gradient 1 must be a tensor or None, not float"),
    "one tensor": (torch.ones(2, 2), TypeError, "not one tensor"),
    "names": ({"a": torch.ones(2), "b": torch.ones(2)}, ValueError, "unknown \\['a', 'b'\\]"),
    "nothing": (None, ValueError, "made without parameters"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_raises_and_changes_nothing(case: str) -> None:
    gradients, error, message = BAD_CALLS[case]
    accumulator = GradientAccumulator()
    accumulator([torch.ones(2), torch.ones(2).bfloat16()])
    before = state_of(accumulator)
    with pytest.raises(error, match=message):
        accumulator(gradients)
    assert state_of(accumulator) == before


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (-1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (torch.tensor(-2), ValueError),
        (torch.ones(1), ValueError),
        (torch.tensor(True), ValueError),
        (True, TypeError),
        ("3", TypeError),
        (None, ValueError),
    ],
)
def test_a_bad_weight_raises_and_changes_nothing(weight: object, error: type[Exception]) -> None:
    accumulator = GradientAccumulator()
    accumulator([torch.ones(2)], weight=2)
    before = state_of(accumulator)
    with pytest.raises(error, match="weight must"):
        accumulator([torch.ones(2)], weight=weight)
    assert state_of(accumulator) == before
    accumulator.reset()
    accumulator([torch.ones(2)])  # another window may be unweighted


def test_bad_calls_on_a_model() -> None:
    model = make_model()
    accumulator = GradientAccumulator(model)
    with pytest.raises(ValueError, match=r"call backward\(\) before"):
        accumulator()
    with pytest.raises(ValueError, match="nothing to apply"):
        accumulator.apply_to()
    token_loss(model, *ragged_batch([3], seed=0)).backward()
    with pytest.raises(ValueError, match="shape"):
        accumulator([torch.ones(1) for _ in model.parameters()])
    model[1].register_parameter("bias", nn.Parameter(torch.zeros(8, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"'1.bias'\] were replaced"):
        accumulator()
    assert model[0].weight.grad is not None  # a call that raises takes nothing
    model.append(nn.Linear(11, 2))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"unknown \['4.weight', '4.bias'\]"):
        accumulator()


def test_a_window_that_was_applied_must_be_reset() -> None:
    param = nn.Parameter(torch.ones(2))
    accumulator = GradientAccumulator([param])
    param.grad = torch.ones(2)
    accumulator()
    accumulator.apply_to()
    assert param.grad is not None
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        accumulator()
    accumulator.reset()
    assert param.grad is None  # or else the next backward would add to it


def test_bad_constructor_arguments() -> None:
    param = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="'mean' or 'sum', not 'avg'"):
        GradientAccumulator(reduction="avg")
    with pytest.raises(ValueError, match="no parameter"):
        GradientAccumulator([])
    with pytest.raises(ValueError, match="twice"):
        GradientAccumulator([param, param])
    with pytest.raises(TypeError, match="not one tensor"):
        GradientAccumulator(param)
    with pytest.raises(TypeError, match="'0' is float"):
        GradientAccumulator([1.0])


def test_apply_to_other_parameters_raises_and_changes_nothing() -> None:
    params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    accumulator = GradientAccumulator()
    with pytest.raises(ValueError, match="nothing to apply"):
        accumulator.apply_to(params)
    accumulator([torch.ones(2), torch.ones(3)])
    bad = {
        "one for each gradient, not 1": params[:1],
        "shape": params[::-1],
        "dtype": [params[0], nn.Parameter(torch.zeros(3, dtype=torch.complex64))],
        "meta": [params[0], nn.Parameter(torch.zeros(3, device="meta"))],
    }
    for message, targets in bad.items():
        with pytest.raises(ValueError, match=message):
            accumulator.apply_to(targets)
    with pytest.raises(ValueError, match="params must be given"):
        accumulator.apply_to()
    assert all(p.grad is None for p in params)
    named = GradientAccumulator()
    named({"a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(ValueError, match=r"missing \['a', 'b'\]"):
        named.apply_to(params)
