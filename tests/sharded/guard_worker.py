"""What test_step_guard.py runs on each process: `guard_worker.py FOLDER RANK RANKS TASK...`."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import hfoptim

STEPS, BAD = 4, 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def gradients(model: nn.Module, step: int) -> None:
    """Those of a step, on shards their parts."""
    for place, param in enumerate(model.parameters()):
        random = torch.Generator().manual_seed(100 * step + place)
        whole = torch.randn(param.shape, generator=random, dtype=torch.float64)
        if isinstance(param, DTensor):
            from torch.distributed.tensor import distribute_tensor

            param.grad = distribute_tensor(whole, param.device_mesh, param.placements, src_data_rank=None)
        else:
            param.grad = whole


def whole(model: nn.Module) -> list[Any]:
    found: list[Tensor] = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [each.detach().flatten().tolist() for each in found]


def spoil(model: nn.Module, fault: str) -> None:
    """A fault of this rank."""
    param = next(model.parameters())
    if fault == "nan":
        here = param.grad.to_local() if isinstance(param.grad, DTensor) else param.grad
        assert here is not None
        here[0, 0] = float("nan")
    else:
        param.grad = None


def train(name: str, sharded: bool, fault: str, way: str) -> dict[str, Any]:
    """Steps, of which one has a fault on rank 1: what was taken, what was said, and the weights after it."""
    model = network()
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = hfoptim.create_optimizer_v2(model, name, lr=0.05)
    ways = {"nonfinite": way} if fault == "nan" else {"differing": way}
    guard = hfoptim.StepGuard(optimizer, timeout=30, **ways)
    taken: list[Any] = []
    for step in range(STEPS):
        gradients(model, step)
        before = whole(model)
        if step == BAD and dist.get_rank() == 1:
            spoil(model, fault)
        try:
            taken.append(guard.step())
        except RuntimeError as error:
            taken.append(str(error))
        if taken[-1] is not True:
            assert whole(model) == before
    assert guard.skipped == taken.count(False)
    return {"taken": taken, "weights": whole(model)}


def faults(folder: Path) -> dict[str, Any]:
    return {
        f"{name}-{'fsdp2' if sharded else 'copies'}-{fault}-{way}": train(name, sharded, fault, way)
        for name, sharded in (("adamw", True), ("lamb", True), ("muon", True), ("prodigy", False))
        for fault in ("nan", "missing")
        for way in ("raise", "skip")
    }


def unlike(folder: Path) -> dict[str, str]:
    """Parameters of which the ranks have other ones, or one frozen; calls of which they make other numbers."""
    said = {}
    for kind in ("frozen", "other", "number"):
        model = network()
        if dist.get_rank() == 1:
            next(model.parameters()).requires_grad_(kind != "frozen")
            if kind == "other":
                model[2] = nn.Linear(5, 4).double()
        params = list(model.named_parameters())
        optimizer = hfoptim.AdamW(params[: 3 if kind == "number" and dist.get_rank() == 1 else None])
        try:
            hfoptim.StepGuard(optimizer)
        except ValueError as error:
            said[kind] = str(error)
    return said


def waiting(folder: Path) -> str:
    """A rank that comes too late, and says nothing."""
    model = network()
    guard = hfoptim.StepGuard(hfoptim.AdamW(model.named_parameters()), timeout=2)
    gradients(model, 0)
    assert guard.step()
    gradients(model, 1)
    if dist.get_rank() == 1:
        time.sleep(5)
        return ""
    try:
        guard.step()
    except RuntimeError as error:
        return str(error)
    return "no error"


def killed(folder: Path) -> str:
    """A rank that is gone."""
    model = network()
    guard = hfoptim.StepGuard(hfoptim.AdamW(model.named_parameters()), timeout=20)
    gradients(model, 0)
    assert guard.step()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    gradients(model, 1)
    try:
        guard.step()
    except RuntimeError as error:
        return str(error)
    return "no error"


TASKS = {task.__name__: task for task in (faults, unlike, waiting, killed)}


def main() -> None:
    folder, rank, ranks, tasks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    store = f"file://{folder}/{'-'.join(tasks)}.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    for task in tasks:
        (folder / f"{task}.{rank}.json").write_text(json.dumps(TASKS[task](folder)))
    gc.collect()
    if tasks[-1] in ("waiting", "killed"):
        os._exit(0)  # the group is broken
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
