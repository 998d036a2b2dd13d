"""Training that goes on as machines leave and join: FSDP2, and checkpoints that load on any number of processes.

torchrun --nnodes=1:2 --max-restarts=9 --rdzv-backend=c10d --rdzv-endpoint=HOST examples/elastic/train.py FOLDER [NAME]
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.append(str(Path(__file__).resolve().parents[1]))
from data import LENGTH, collate, load_sequences, report, tiny_gpt2

import schedules
from hfoptim import create_optimizer_v2

STEPS, SEQUENCES, EVERY = 24, 8, 4  # the sequences are those of all processes together


def nothing(step: int) -> None:
    """What is done between two steps."""


def contents(model: Any, optimizer: torch.optim.Optimizer, schedule: Any, step: int) -> dict[str, Any]:
    """All that a run needs to go on; of a new optimizer, the shapes that a checkpoint is loaded into."""
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "schedule": schedule.state_dict(),
        "step": step,
    }


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint: `.metadata` is written last."""
    whole = [path.parent for path in folder.glob("*/.metadata")]
    return max(whole, key=lambda path: int(path.name), default=None)


def train(folder: Path, name: str, between: Callable[[int], None] = nothing) -> None:
    """Train from the newest checkpoint on."""
    on_gpus = torch.cuda.is_available()
    kind = "cuda" if on_gpus else "cpu"
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    aside = dist.new_group(backend="gloo")  # a checkpoint that is written beside the steps needs a group of its own

    model: Any = tiny_gpt2().eval().to(kind)  # no dropout: the loss is the same on any number of processes
    mesh = init_device_mesh(kind, (ranks,))
    for layer in model.transformer.h:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = create_optimizer_v2(model, name, lr=2e-3, weight_decay=0.1)
    schedule = schedules.get_scheduler("cosine", optimizer, num_warmup_steps=4, num_training_steps=STEPS)
    sequences = [sequence for sequence in load_sequences() if len(sequence["input_ids"]) == LENGTH]

    begin, losses = 0, []
    last = newest(folder)
    if last is not None:
        state = contents(model, optimizer, schedule, 0)
        dcp.load(state, checkpoint_id=last)
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        begin = state["step"]

    writing: Any = None
    for step in range(begin, STEPS):
        # The batch of a step is the same on any number of processes, each of which takes its share.
        batch = collate(sequences[SEQUENCES * step : SEQUENCES * (step + 1)][rank::ranks])
        loss = model(**{key: value.to(kind) for key, value in batch.items()}).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss = loss.detach() / ranks
        dist.all_reduce(loss)
        losses.append(loss.item())
        if rank == 0:
            print(f"step {step:2d} of {ranks} process(es)  loss {losses[-1]:.4f}", flush=True)
        if (step + 1) % EVERY == 0:
            if writing is not None:
                writing.result()
            state = contents(model, optimizer, schedule, step + 1)
            writing = dcp.async_save(state, checkpoint_id=folder / str(step + 1), process_group=aside)
        between(step)
    if writing is not None:
        writing.result()
    if rank == 0 and losses:
        report(optimizer, losses)
    dist.destroy_process_group()


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "adamw")
