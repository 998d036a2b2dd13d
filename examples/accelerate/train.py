"""One loop for DDP, FSDP2, HSDP and DeepSpeed's ZeRO, which a configuration in this folder chooses (see README.md):

accelerate launch --config_file examples/accelerate/fsdp2.yaml examples/accelerate/train.py [OPTIMIZER]
"""

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.append(str(Path(__file__).resolve().parents[1]))
from data import LENGTH, collate, load_sequences, report, tiny_gpt2

import schedules
from hfoptim import create_optimizer_v2

STEPS, SEQUENCES = 40, 8  # the sequences are those of all processes together


def shard_on_cpus(model: Any, processes: int) -> None:
    """What Accelerate does with GPUs and leaves undone without: FSDP2, by layers, as its configuration says."""
    replicas = int(os.environ.get("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "1"))
    mesh = init_device_mesh("cpu", (replicas, processes // replicas), mesh_dim_names=("replicas", "shards"))
    if replicas == 1:
        mesh = mesh["shards"]
    for layer in model.transformer.h:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def train(accelerator: Accelerator, name: str) -> None:
    model: Any = tiny_gpt2().eval()  # no dropout: the loss is the same on any number of processes
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and accelerator.device.type == "cpu":
        shard_on_cpus(model, accelerator.num_processes)
    sequences = [sequence for sequence in load_sequences() if len(sequence["input_ids"]) == LENGTH]
    loader: Any = torch.utils.data.DataLoader(
        sequences,
        SEQUENCES // accelerator.num_processes,
        collate_fn=collate,  # type: ignore[arg-type]
    )
    optimizer = create_optimizer_v2(model, name, lr=2e-3, weight_decay=0.1)
    if any(hasattr(param, "device_mesh") for param in model.parameters()):
        optimizer, loader = accelerator.prepare(optimizer, loader)
    else:
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    # Not prepared: Accelerate would step it once for each process.
    schedule = schedules.get_scheduler("cosine", optimizer, num_warmup_steps=4, num_training_steps=STEPS)

    losses = []
    for step, batch in enumerate(itertools.islice(loader, STEPS)):
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
        if step % 10 == 0:
            accelerator.print(f"step {step:3d}  loss {losses[-1]:.3f}  lr {schedule.get_last_lr()[0]:.2e}")

    if accelerator.is_main_process:
        print(f"{accelerator.num_processes} process(es)")
        report(getattr(optimizer.optimizer, "optimizer", optimizer.optimizer), losses)  # DeepSpeed's is around ours


if __name__ == "__main__":
    on_cpus = not torch.cuda.is_available()
    if on_cpus:  # it takes replicas of shards on GPUs alone
        os.environ.pop("ACCELERATE_USE_PARALLELISM_CONFIG", None)
    accelerator = Accelerator(cpu=on_cpus)
    train(accelerator, sys.argv[1] if len(sys.argv) > 1 else "adamw")
    accelerator.end_training()
