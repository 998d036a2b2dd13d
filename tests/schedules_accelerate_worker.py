"""What test_schedules_accelerate.py runs on each process: `schedules_accelerate_worker.py FOLDER`.

Trains in every way in which Accelerate and the Trainer drive a schedule, and writes what each step of the optimizer was
taken with.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration, set_seed

import schedules

STEPS, WARMUP, TOTAL, CUT = 9, 2, 8, 4
METRICS = [3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]

Trace = list[dict[str, list[float]]]


def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model, and an optimizer with two groups of unequal lr, one of them without decay."""
    set_seed(0)
    model = torch.nn.Linear(3, 2)
    groups = [{"params": [model.weight], "lr": 0.1, "weight_decay": 0.3}, {"params": [model.bias], "lr": 0.02}]
    return model, torch.optim.AdamW(groups, weight_decay=0.0)


def cosine(optimizer: torch.optim.Optimizer) -> list[Any]:
    """A schedule by name that takes two hyper-parameters along."""
    schedule = schedules.get_scheduler("cosine", optimizer, WARMUP, TOTAL)
    schedules.schedule_hyperparameter(optimizer, "weight_decay", schedules.linear(TOTAL), schedule)
    rising = schedules.linear(TOTAL).between(schedules.absolute(0.95), schedules.absolute(0.8))
    return [schedules.schedule_hyperparameter(optimizer, "momentum", rising, schedule)]


def apart(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The learning rate and a hyper-parameter, each with a schedule of its own."""
    lr = schedules.get_scheduler("linear", optimizer, WARMUP, TOTAL)
    return [lr, schedules.schedule_hyperparameter(optimizer, "weight_decay", schedules.cosine(TOTAL))]


def plateau(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [schedules.get_scheduler("reduce_lr_on_plateau", optimizer, None, None, {"patience": 1, "factor": 0.5})]


def greedy(optimizer: torch.optim.Optimizer) -> list[Any]:
    options = {"patience": 1, "factor": 0.5, "min_lr": 1e-6}
    return [schedules.get_scheduler("greedy", optimizer, None, None, options)]


MAKERS: dict[str, Callable[[torch.optim.Optimizer], list[Any]]] = {
    "cosine": cosine,
    "apart": apart,
    "plateau": plateau,
    "greedy": greedy,
}


def watch(optimizer: torch.optim.Optimizer) -> Trace:
    """A list that grows by the groups' numbers at each step of the optimizer."""
    trace: Trace = []

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        groups = optimizer.param_groups
        betas = [beta for group in groups for beta in group["betas"]]
        trace.append({"lr": [g["lr"] for g in groups], "decay": [g["weight_decay"] for g in groups], "betas": betas})

    optimizer.register_step_pre_hook(note)
    return trace


def advance(scheduler: Any, name: str, done: int) -> None:
    if name in ("plateau", "greedy"):
        scheduler.step(METRICS[done])
    else:
        scheduler.step()


def plain(name: str) -> Trace:
    """One process and nobody in between: what all others have to equal."""
    model, optimizer = make()
    trace, made = watch(optimizer), MAKERS[name](optimizer)
    for done in range(STEPS):
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for schedule in made:
            advance(schedule, name, done)
    return trace


def fresh_accelerator(**options: Any) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()
    return Accelerator(cpu=True, **options)


def accelerated(name: str, accumulation: int, start: int, stop: int, folder: Path, **options: Any) -> Trace:
    """Steps `start` to `stop` under Accelerate, from a saved state if `start` is not 0; saves its own at the end."""
    accelerator = fresh_accelerator(gradient_accumulation_steps=accumulation, **options)
    model, optimizer = make()
    trace, made = watch(optimizer), MAKERS[name](optimizer)
    # One batch more than whole windows, so that the last window of the data is a short one.
    data = [torch.full((3,), float(i + 1)) for i in range(4 * accelerator.num_processes * (2 * accumulation + 1))]
    loader: Any = torch.utils.data.DataLoader(data, batch_size=4)
    model, optimizer, loader, *made = accelerator.prepare(model, optimizer, loader, *made)
    if start:
        accelerator.load_state(str(folder))
    done = start
    while done < stop:
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(batch).square().mean())
                optimizer.step()
                if accelerator.step_scheduler_with_optimizer or accelerator.sync_gradients:
                    for schedule in made:
                        advance(schedule, name, done)
                optimizer.zero_grad()
            done += accelerator.sync_gradients
            if done == stop:
                break
    accelerator.save_state(str(folder))
    return trace


def trained(accumulation: int, folder: Path, resume: bool) -> Trace:
    """The cosine schedule in a Trainer, from its checkpoint at step CUT if `resume`."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from hfoptim import OptimizerCallback

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.linear(x).square().mean()}

    class Watch(TrainerCallback):
        trace: Trace = []

        def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            self.trace = watch(optimizer.optimizer)

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    set_seed(0)
    model, watching = Model(), Watch()
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        ddp_backend="gloo" if dist.is_initialized() else None,
        report_to=[],
        disable_tqdm=True,
        max_steps=TOTAL,
        warmup_steps=WARMUP,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        save_steps=CUT,
        logging_steps=1,
    )
    falling = ("linear", {"num_warmup_steps": 0})
    rising = schedules.linear(TOTAL).between(schedules.absolute(0.95), schedules.absolute(0.8))
    chosen = OptimizerCallback(
        "adamw",
        lr=0.1,
        weight_decay=0.3,
        schedule="cosine",
        hyperparameters={"weight_decay": falling, "momentum": rising},
    )
    data = [{"x": torch.full((3,), float(i))} for i in range(64)]
    trainer = Trainer(model, args, train_dataset=data, callbacks=[chosen, watching])
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{CUT}") if resume else None)
    return watching.trace


def main(folder: Path) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    report: dict[str, Trace] = {}
    for accumulation in (1, 4):
        for name in MAKERS:
            key = f"{name}, accumulation {accumulation}"
            report[key] = accelerated(name, accumulation, 0, STEPS, folder / key)
        for name in MAKERS:
            key = f"{name}, accumulation {accumulation}, resumed"
            before = accelerated(name, accumulation, 0, CUT, folder / key)
            report[key] = before + accelerated(name, accumulation, CUT, STEPS, folder / key)
        by_hand = {"step_scheduler_with_optimizer": False}
        key = f"cosine, accumulation {accumulation}, stepped by hand"
        report[key] = accelerated("cosine", accumulation, 0, STEPS, folder / key, **by_hand)
        split = {"dataloader_config": DataLoaderConfiguration(split_batches=True)}
        key = f"cosine, accumulation {accumulation}, split batches"
        report[key] = accelerated("cosine", accumulation, 0, STEPS, folder / key, **split)
        for resume in (False, True):
            key = f"trainer, accumulation {accumulation}{', resumed' if resume else ''}"
            report[key] = trained(accumulation, folder / f"trainer {accumulation}", resume)
    assert world == (dist.get_world_size() if dist.is_initialized() else 1)
    (folder / f"rank-{rank}.json").write_text(json.dumps({"world": world, "traces": report}))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
