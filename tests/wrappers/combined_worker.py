"""What test_sharded_wrappers.py runs on each process: `combined_worker.py FOLDER RANK`. Several optimizers, FSDP2."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import hfoptim
from hfoptim import CombinedOptimizer


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def made(model: Any) -> CombinedOptimizer:
    """Muon and two others; the last group of all is the first optimizer's."""
    combined = CombinedOptimizer(
        [
            hfoptim.Muon([("mid.weight", model[2].weight)], lr=1e-2),
            torch.optim.AdamW([model[0].weight, model[0].bias], lr=1e-2),
            hfoptim.Lion(model[4].named_parameters(prefix="4"), lr=1e-3),
        ]
    )
    combined.add_param_group({"params": [("bias", model[2].bias)], "lr": 1e-3, "use_muon": False})
    return combined


def step(model: Any, optimizer: Any, t: int) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def full(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def same(model: Any, optimizer: Any, whole: Any, theirs: Any) -> None:
    for (name, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(full(p), q, rtol=1e-10, atol=1e-12, msg=name)
        mine, yours = optimizer.state[p], theirs.state[q]
        assert mine.keys() == yours.keys(), name
        for key, value in yours.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(full(mine[key]), value, rtol=1e-10, atol=1e-12, msg=f"{name} {key}")
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in theirs.param_groups]


def sharded(seed: int) -> tuple[Any, CombinedOptimizer]:
    model = model_of(seed)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model, made(model)


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    whole = model_of(0)
    theirs = made(whole)
    model, optimizer = sharded(0)
    for t in range(3):
        step(whole, theirs, t)
        step(model, optimizer, t)
    theirs.param_groups[1]["lr"] = optimizer.param_groups[1]["lr"] = 3e-3
    same(model, optimizer, whole, theirs)
    weights = {name: param.detach().clone() for name, param in whole.named_parameters()}

    checkpoint = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    names = {name for name, _ in model.named_parameters()}
    assert set(checkpoint["optimizer"]["state"]) == names
    dcp.save(checkpoint, checkpoint_id=folder / "dcp")
    copies = []
    for options in (None, StateDictOptions(full_state_dict=True), StateDictOptions(flatten_optimizer_state_dict=True)):
        again, fresh = sharded(0)
        if options is None:
            before = [param.full_tensor().clone() for param in again.parameters()]
            loaded = {"optimizer": get_optimizer_state_dict(again, fresh)}  # makes state
            for param, old in zip(again.parameters(), before, strict=True):
                assert torch.equal(param.full_tensor(), old), "making state has moved a parameter"
            dcp.load(loaded, checkpoint_id=folder / "dcp")
            set_optimizer_state_dict(again, fresh, loaded["optimizer"])
        else:
            # torch's AdamW would share tensors with what it loads.
            saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
            set_optimizer_state_dict(again, fresh, saved, options=options)
        copies.append((again, fresh))
    for again, fresh in copies:
        with torch.no_grad():
            for name, param in again.named_parameters():
                kept = torch.distributed.tensor.distribute_tensor(weights[name], param.device_mesh, param.placements)
                param.copy_(kept)
        same(again, fresh, whole, theirs)
    for t in range(3, 5):
        step(whole, theirs, t)
        for again, fresh in copies:
            step(again, fresh, t)
    for again, fresh in copies:
        same(again, fresh, whole, theirs)
    dist.destroy_process_group()
    (folder / f"done-{rank}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
