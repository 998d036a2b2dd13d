"""Parameters that somebody has flattened: entries step as on one process, everything else is refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn

import hfoptim
from hfoptim.engine.distributed import flattened

COLUMN = Path(__file__).resolve().parents[2] / "benchmarks" / "distributed_column.py"

ELEMENTS = ["adamw", "lion", "adan", "laprop", "adamw_schedule_free", "lookahead_adamw", "ema_adamw"]
# Their sums go over the ranks.
SUMS = ["prodigy", "dadapt_adam", "dog", "momo"]
# Sums over each tensor by all-reduces; matrices, rows, noise and places at owners; sums over all parameters of these.
SHAPED = ["lamb", "cadamw", "muon", "adafactor", "soap", "grokadamw", "mars", "noisy_sgd", "adai"]
REFUSED = {
    "sam_adamw": "Adam is inside of SAMAdam",
    "adahessian": "Adahessian differentiates gradients",
    "bsam": "BSAM takes gradients of a batch twice",
    "lbfgs": "LBFGS takes products of vectors of all gradients",
    "sparse_adam": "SparseAdam takes sparse gradients alone",
}


@pytest.fixture(scope="module")
def fsdp1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fsdp1")
    names = [*ELEMENTS, *SUMS, *SHAPED, *REFUSED]
    job = {"column": "fsdp1", "kind": "step", "names": names, "folder": str(folder), "store": str(folder / "store")}
    (folder / "job.json").write_text(json.dumps({**job, "output": str(folder / "found.json")}))
    run_ranks(COLUMN, str(folder / "job.json"), "{rank}", "2", ranks=2, output=folder, timeout=300)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def test_under_fsdp1_entries_step_as_on_one_process(fsdp1: dict[str, Any]) -> None:
    for name in ELEMENTS:
        assert fsdp1[name] == {"distance": 0.0}, name
    for name in [*SUMS, *SHAPED]:
        assert fsdp1[name]["distance"] < 1e-9, (name, fsdp1[name])


def test_under_fsdp1_everything_else_is_refused_by_name(fsdp1: dict[str, Any]) -> None:
    for name, said in REFUSED.items():
        assert fsdp1[name].get("error") == "ValueError", (name, fsdp1[name])
        assert said in fsdp1[name]["said"], name
        assert "FullyShardedDataParallel (FSDP1) has flattened" in fsdp1[name]["said"]
        assert "FSDP2" in fsdp1[name]["said"]


# -- noticed without processes: a flat tensor in the place of the parameters, as DeepSpeed puts it there --------------


def flat_of(params: list[nn.Parameter]) -> Tensor:
    flat = torch.cat([param.detach().reshape(-1) for param in params]).requires_grad_()
    flat.grad = torch.ones_like(flat)
    return flat


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.arange(1.0, 13.0).reshape(3, 4)), nn.Parameter(torch.ones(5))]


def replaced(name: str, **options: Any) -> tuple[Any, Tensor]:
    params = parameters()
    info = hfoptim.get_optimizer_info(name)
    optimizer = info.opt_class(params, lr=0.1, **{**info.defaults, **options})
    optimizer.param_groups[0]["params"] = [flat_of(params)]
    return optimizer, optimizer.param_groups[0]["params"][0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lamb", {}),
        ("novograd", {}),
        ("adafactor_torch", {}),
        ("shampoo", {}),
        ("adamw", {"caution": True}),
        ("dog", {}),
        ("adamw", {"state_dtype": "8bit"}),
    ],
)
def test_a_flat_tensor_in_the_place_of_parameters_is_refused(name: str, options: dict[str, Any]) -> None:
    optimizer, flat = replaced(name, **options)
    before = flat.detach().clone()
    for _ in range(2):
        with pytest.raises(ValueError, match="has flattened the parameters into parts of one long vector"):
            optimizer.step()
    assert torch.equal(flat, before)


def test_an_option_that_is_switched_on_later_is_refused() -> None:
    optimizer, _ = replaced("adamw")
    optimizer.step()
    optimizer.param_groups[0]["caution"] = True
    with pytest.raises(ValueError, match="an option that takes means or norms"):
        optimizer.step()


def test_entries_step_in_a_flat_tensor_as_in_their_parameters() -> None:
    optimizer, flat = replaced("adamw")
    params = parameters()
    info = hfoptim.get_optimizer_info("adamw")
    other = info.opt_class(params, lr=0.1, **info.defaults)
    for param in params:
        param.grad = torch.ones_like(param)
    for _ in range(3):
        optimizer.step()
        other.step()
    assert torch.equal(flat, torch.cat([param.detach().reshape(-1) for param in params]))


@pytest.mark.parametrize("how", ["copies", "others", "deepcopy", "another group"])
def test_what_only_replaces_parameters_is_taken(how: str) -> None:
    params = parameters()
    optimizer: Any = hfoptim.Lamb(params, lr=0.1)
    (group,) = optimizer.param_groups
    if how == "copies":  # as mixed precision keeps them
        group["params"] = [param.detach().clone().requires_grad_() for param in params]
    elif how == "others":  # layers that are trained later on
        group["params"] = [params[1], nn.Parameter(torch.ones(5))]
    elif how == "deepcopy":
        optimizer = copy.deepcopy(optimizer)
    else:
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(7))]})
    for each in optimizer.param_groups:
        for param in each["params"]:
            param.grad = torch.ones_like(param)
    optimizer.step()


def test_a_vector_of_another_group_does_not_hide_a_flat_tensor() -> None:
    params = parameters()
    bias = nn.Parameter(torch.ones(17))
    optimizer = hfoptim.Lamb([{"params": params}, {"params": [bias]}], lr=0.1)
    optimizer.param_groups[0]["params"] = [flat_of(params)]  # of 17 entries, too
    with pytest.raises(ValueError, match="flattened"):
        optimizer.step()


def test_sizes_of_zero_init_are_known() -> None:
    param: Any = nn.Parameter(torch.empty(0))
    param.ds_shape = torch.Size((3, 4))
    with pytest.raises(ValueError, match=r"Lamb .* DeepSpeed ZeRO has flattened"):
        hfoptim.Lamb([param], lr=0.1)
    assert hfoptim.AdamW([param], lr=0.1).param_groups


def test_groups_by_shape_are_refused_where_shapes_are_gone() -> None:
    model = nn.Linear(3, 4)
    model.weight._fsdp_flattened = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"weight: FullyShardedDataParallel \(FSDP1\) has flattened"):
        hfoptim.create_optimizer_v2(model, "adamw", weight_decay=0.1)


def test_numbers_of_a_group_are_not_counted_for_its_parts() -> None:
    """DeepSpeed steps a large group in several parts; a count of steps in the group would run ahead."""
    params = parameters()
    optimizer: Any = hfoptim.LaProp([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    first, second = (flat_of([param, param]) for param in params)
    for own, group in zip((first, second), optimizer.param_groups, strict=True):
        group["params"] = []
        own.grad = torch.ones_like(own)
    for _ in range(2):  # stage 3 steps a part at a time, all other groups being empty
        for own, group in zip((first, second), optimizer.param_groups, strict=True):
            group["params"] = [own]
            optimizer.step()
            group["params"] = []
    assert [group["k"] for group in optimizer.param_groups] == [2, 2]
    optimizer.param_groups[0]["params"] = [flat_of([params[0], params[0]])]
    with pytest.raises(ValueError, match="sub_group_size"):
        optimizer.step()


def test_several_optimizers_are_not_stepped_part_by_part() -> None:
    params = parameters()
    both = hfoptim.CombinedOptimizer([hfoptim.AdamW(params[:1]), hfoptim.Lion(params[1:])])
    group = both.param_groups[0]
    assert flattened.why_not(both.optimizers[0], group, flattened.ZERO) == (
        "is one of several optimizers, which are stepped together"
    )
    assert not flattened.why_not(both.optimizers[0], group, flattened.FSDP1)
