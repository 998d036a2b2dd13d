"""torch.optim.LBFGS behind the registry."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import hfoptim
from hfoptim import registry
from hfoptim.cli import app

OPTIONS = ["lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size", "line_search_fn"]


def rosenbrock(points):
    x, y = points
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def test_the_registry_knows_it():
    info = hfoptim.get_optimizer_info("LBFGS")
    assert (info.name, info.opt_class, info.needs_closure) == ("lbfgs", torch.optim.LBFGS, True)
    assert "lbfgs" in hfoptim.list_optimizers()
    assert hfoptim.get_optimizer_class("l-bfgs") is torch.optim.LBFGS
    assert not isinstance(hfoptim.get_optimizer_class("lbfgs"), functools.partial)
    # The engine's options are not offered, for it does not run on the engine.
    assert registry.option_names("lbfgs") == OPTIONS


def test_made_by_name_it_is_torchs_and_minimises():
    points = [nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (-1.5, 2.0)]
    optimizer = hfoptim.create_optimizer_v2(points, "lbfgs", lr=1.0, max_iter=50, line_search_fn="strong_wolfe")
    assert type(optimizer) is torch.optim.LBFGS
    assert (optimizer.defaults["max_iter"], optimizer.defaults["history_size"]) == (50, 100)

    def closure():
        optimizer.zero_grad()
        loss = rosenbrock(points)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert rosenbrock(points) < 1e-8  # from 12 at the start


def test_a_model_is_one_group():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    model[0].bias.requires_grad_(False)
    optimizer = hfoptim.create_optimizer_v2(model, "lbfgs")
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters() if p.requires_grad]
    assert optimizer.defaults["lr"] == 1


def test_options_it_has_not_are_refused_by_name():
    model = nn.Linear(3, 1)
    for options in ({"weight_decay": 0.1}, {"foreach": True}, {"fused": True}, {"kahan_sum": True}, {"max_itr": 3}):
        (name,) = options
        with pytest.raises(ValueError, match=f"lbfgs has no option {name!r}"):
            hfoptim.create_optimizer_v2(model, "lbfgs", **options)
    with pytest.raises(ValueError, match="parameter groups"):
        hfoptim.create_optimizer_v2(model, "lbfgs", layer_decay=0.5)


def test_the_command_line_explains_it():
    result = CliRunner().invoke(app, ["info", "lbfgs"], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for part in ("torch.optim.LBFGS", "history_size=100", "needs a closure", "Implements L-BFGS algorithm"):
        assert part in text
    assert "foreach" not in text
