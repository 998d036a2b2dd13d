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
# Seconds that ranks wait for each other in a backward pass with a fault.
PATIENCE = 10


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


def _backward(fault: str) -> str:
    """What a rank says of a training with DDP, in which rank 1 meets a fault inside of its second backward pass."""
    model = nn.parallel.DistributedDataParallel(network())
    guard = hfoptim.StepGuard(hfoptim.AdamW(model.named_parameters()))

    def meet(grad: Tensor) -> Tensor:
        if dist.get_rank() == 1 and guard._count == 2:  # of the second pass
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "stuck":
                time.sleep(2 * PATIENCE)
            raise ValueError("spoiled")
        return grad

    model.module[2].weight.register_hook(meet)
    try:
        for step in range(3):
            batch = torch.randn(4, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            with guard.during("backward pass"):
                model(batch).square().sum().backward()
            guard.step()
            model.zero_grad()
    except (RuntimeError, ValueError) as error:
        if dist.get_rank() == 1:
            time.sleep(PATIENCE + 2)  # its connection stays open
        return f"{type(error).__name__}: {error}"
    return "no error"


def failing(folder: Path) -> str:
    return _backward("fails")


def stuck(folder: Path) -> str:
    return _backward("stuck")


def ended(folder: Path) -> str:
    return _backward("killed")


TASKS = {task.__name__: task for task in (faults, unlike, waiting, killed, failing, stuck, ended)}


def main() -> None:
    folder, rank, ranks, tasks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    # By the variables that torchrun sets: a store in a file is asked nothing.
    seconds = PATIENCE if tasks[0] in ("failing", "stuck", "ended") else 60
    dist.init_process_group("gloo", rank=rank, world_size=ranks, timeout=timedelta(seconds=seconds))
    for task in tasks:
        (folder / f"{task}.{rank}.json").write_text(json.dumps(TASKS[task](folder)))
    gc.collect()
    if tasks[-1] not in ("faults", "unlike"):
        os._exit(0)  # the group is broken
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
