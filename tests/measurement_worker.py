"""What test_measurement_processes.py runs on each process: `measurement_worker.py TASK FOLDER`, started by torchrun.

A task returns what it measured: step by step, by key.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import hfoptim
from hfoptim.training.step_metrics import MEASURED, StepMeasurement

Numbers = list[dict[str, float]]
Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1),
    "lion": lambda groups: hfoptim.Lion(groups, lr=0.1),
    "lamb": lambda groups: hfoptim.Lamb(groups, lr=0.1, weight_decay=0.1),
    "lars": lambda groups: hfoptim.Lars(groups, lr=0.1, weight_decay=0.1),
    "lamb in 8 bits": lambda groups: hfoptim.Lamb(groups, lr=0.1, weight_decay=0.1, state_dtype="8bit"),
    "lookahead": lambda groups: hfoptim.Lookahead(hfoptim.AdamW(groups, lr=0.1), k=1),
}


def network(dtype: torch.dtype) -> nn.Module:
    """Parts of unequal sizes, a part without rows on the second rank, and enough entries for 8-bit state."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 71), nn.Tanh(), nn.Linear(71, 65), nn.Tanh(), nn.Linear(65, 1)).to(dtype)


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    return [{"params": matrices}, {"params": [p for p in model.parameters() if p.ndim < 2]}]


def train(model: nn.Module, make: Make, ranks: int, rank: int) -> Numbers:
    """Three steps on this rank's share of each batch."""
    optimizer, found = make(groups_of(model)), []
    share = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    for step in range(3):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        model(x[share].to(next(model.parameters()).dtype)).square().mean().backward()
        # Whether an entry is left as it was may hang on the last bit of a sum over ranks.
        measurement = StepMeasurement(optimizer, set(MEASURED) - {"zero_updates", "lost_updates"})
        optimizer.step()
        optimizer.zero_grad()
        found.append(measurement.values())
    return found


def training(folder: Path) -> dict[str, list[Numbers]]:
    """Each optimizer on one process, under FSDP2 and under DDP."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh("cpu", (ranks,))
    found = {}
    for name, make in OPTIMIZERS.items():
        dtype = torch.float32 if "8 bits" in name else torch.float64
        alone, sharded, copied = network(dtype), network(dtype), network(dtype)
        for layer in sharded.children():
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        replicated = nn.parallel.DistributedDataParallel(copied)
        models = ((alone, 1, 0), (sharded, ranks, rank), (replicated, ranks, rank))
        found[name] = [train(model, make, *part) for model, *part in models]
    return found


def meshes(folder: Path) -> list[dict[str, float]]:
    """One step with parameters divided in several ways, beside the same step with plain ones."""
    mesh = init_device_mesh("cpu", (2, 2))
    ways = [(Shard(0), Shard(1)), (Replicate(), Shard(0)), (Shard(0), Replicate()), (Replicate(), Replicate()), None]
    plain, divided = [], []
    for seed, way in enumerate(ways):
        torch.manual_seed(seed)
        weight, grad = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
        plain.append(nn.Parameter(weight.clone()))
        plain[-1].grad = grad
        if way is None:
            divided.append(nn.Parameter(weight.clone()))
            divided[-1].grad = grad.clone()
        else:
            divided.append(nn.Parameter(distribute_tensor(weight, mesh, way)))
            divided[-1].grad = distribute_tensor(grad, mesh, way)
    # A gradient that is still to be added up.
    assert plain[0].grad is not None
    quarter = torch.distributed.tensor.DTensor.from_local(plain[0].grad / 4, mesh, [Partial(), Partial()])
    divided[0].grad = quarter.redistribute(mesh, [Shard(0), Partial()])
    found = []
    for params in (plain, divided):
        optimizer = hfoptim.Lars([{"params": params[:2]}, {"params": params[2:]}], lr=0.1, weight_decay=0.1)
        measurement = StepMeasurement(optimizer, MEASURED)
        optimizer.step()
        found.append(measurement.values())
    return found


def trainer(folder: Path) -> dict[str, Any]:
    """What a Trainer logs, with as many processes as there are."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from hfoptim.trainer import OptimizerCallback

    world = int(os.environ.get("WORLD_SIZE", 1))
    start = torch.arange(32) % 16
    rows = (start[:, None] + 3 * torch.arange(8)) % 16
    args = TrainingArguments(
        str(folder / "out"),
        use_cpu=True,
        ddp_backend="gloo",
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=2,
        max_steps=6,
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
    )
    config = GPT2Config(
        **{"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 16, "n_positions": 8},
        **{"bos_token_id": 0, "eos_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    )
    torch.manual_seed(0)
    callback = OptimizerCallback("lamb", lr=1e-2, weight_decay=0.1, log=True)
    data = [{"input_ids": row, "labels": row} for row in rows]
    made = Trainer(GPT2LMHeadModel(config), args, train_dataset=data, callbacks=[callback])
    made.train()
    log = [entry for entry in made.state.log_history if "loss" in entry]
    return {"world": args.world_size, "log": log, "sharded": counted(made) if world > 1 else None}


def counted(trainer: Any) -> float:
    """The share of clipped steps where each process' part of a norm of 5, 3 or 4, is below the limit."""
    from hfoptim.trainer.monitor import _Training

    trainer.args.max_grad_norm = 4.5
    training = _Training(trainer, ("clipped_share",), True)
    mesh = init_device_mesh("cpu", (2,))
    norm = torch.linalg.vector_norm(distribute_tensor(torch.tensor([3.0, 4.0]), mesh, [Shard(0)]))
    assert norm.placements[0].is_partial()
    assert norm.to_local().item() < 4.5
    training.note_norm(norm)
    training.note_norm(norm * 0.5)
    return training.numbers(0)["optimizer/clipped_share"]


def main() -> None:
    task, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ.get("RANK", 0))
    if task != "trainer":
        dist.init_process_group("gloo")
    found = copy.deepcopy({"training": training, "meshes": meshes, "trainer": trainer}[task](folder))
    (folder / f"{task}.{rank}.json").write_text(json.dumps(found))
    gc.collect()  # a gloo thread that still holds a tensor when Python ends aborts the process
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
