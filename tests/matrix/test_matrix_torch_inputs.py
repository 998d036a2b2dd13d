"""torch's own table of its optimizers, OptimizerInfo: what it tries them with, ours of the same algorithm take too."""

from __future__ import annotations

import re
from unittest import mock

import pytest
import torch
from torch import nn

import hfoptim

# torch's table wants it; it is a test dependency.
pytest.importorskip("expecttest", reason="torch.testing._internal needs it")
from torch.testing._internal.common_optimizers import optim_db

INFOS = {info.optim_cls.__name__: info for info in optim_db}  # type: ignore[attr-defined]  # they are classes
OURS = {
    "Adam": hfoptim.get_optimizer_class("adam"),
    "AdamW": hfoptim.get_optimizer_class("adamw"),
    "SGD": hfoptim.SGD,
    "Adagrad": hfoptim.Adagrad,
    "Muon": hfoptim.Muon,
}
INPUTS = [
    pytest.param(name, given.kwargs, id=f"{name}-{given.desc.replace(' ', '_')}")
    for name in OURS
    for given in INFOS[name].optim_inputs_func(device="cpu")
]

# What torch refuses and hfoptim takes.
TAKEN = {
    "lr as a Tensor is not supported for capturable=False and foreach=True": "every runner takes an lr in a tensor",
    "betas must be either both floats or both Tensors": "a tensor of one number is read as that number",
    "betas\\[0\\] as a Tensor is not supported for capturable=False and foreach=True": "the same",
    "Muon only supports 2D parameters": "kernels are flattened, vectors go to AdamW",
}

ERRORS = [
    pytest.param(name, error, id=f"{name}-{index}")
    for name in OURS
    for index, error in enumerate(INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32))
]


def weights():
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in ((6, 4), (4, 4), (3, 5))
    ]


def train(optimizer, params):
    for step in range(8):
        for param in params:
            param.grad = 2 * param.detach() + (step + 1) * param.detach().cos()
        optimizer.step()
    return torch.cat([param.detach().flatten() for param in params])


@pytest.mark.parametrize(("name", "options"), INPUTS)
def test_what_torch_is_tried_with_gives_the_same_here(name, options):
    # In double precision, as everything else: torch computes with the tensor itself.
    options = {key: value.double() if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    start, theirs, ours = weights(), weights(), weights()
    # The dtype in which torch's Muon iterates, wherever it is.
    with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
        wanted = train(getattr(torch.optim, name)(theirs, **options), theirs)
    found = train(OURS[name](ours, **options), ours)
    moved = (wanted - torch.cat([param.detach().flatten() for param in start])).norm()
    assert moved > 0
    assert (found - wanted).norm() <= 1e-9 * moved


@pytest.mark.parametrize(("name", "error"), ERRORS)
def test_what_torch_refuses_is_refused_here(name, error):
    given = error.optimizer_error_input
    params, options = weights() if given.params is None else given.params, dict(given.kwargs)
    if error.error_regex in TAKEN:
        assert OURS[name](params, **options).param_groups
        return
    if error.error_type is UserWarning:
        with pytest.warns(UserWarning, match=error.error_regex):
            OURS[name](params, **options)
        return
    with pytest.raises((ValueError, TypeError)) as raised:
        OURS[name](params, **options).step()
    # The message names the argument that torch's names.
    known = [key for key in options if key in error.error_regex]
    assert all(re.search(key, str(raised.value)) for key in known[:1])
