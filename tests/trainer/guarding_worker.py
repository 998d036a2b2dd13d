"""Trainings with GuardSteps in which one rank meets a fault: `guarding_worker.py KIND FOLDER CASE...` on each process.

KIND is "ddp" or "fsdp2"; each process writes a JSON of what became of its trainings.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from second_pass_worker import Windows, full, make_data
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments

from hfoptim import GuardSteps, OptimizerCallback

STEPS, BAD, PATIENCE = 4, 2, 12
ALL = "all"  # the ranks that a reference leaves the step out on


def make_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 16, "n_positions": 8}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **still)).double()


class Spoiling(Windows):
    """Meets a fault in the last micro-batch of a step, where `own` says that it is this rank's."""

    fault, own = "", False

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        due = self.own and self.state.global_step == BAD and self.accelerator.sync_gradients
        if due and self.fault == "stuck":
            time.sleep(2 * PATIENCE)
        if due and self.fault == "fails":
            raise ValueError("spoiled")
        loss = super().training_step(model, inputs, num_items_in_batch)
        if due:
            spoil(self.model, self.fault)
        return loss


def spoil(model: Any, fault: str) -> None:
    param = model.transformer.h[0].attn.c_attn.weight
    if fault == "nan":
        (param.grad.to_local() if isinstance(param.grad, DTensor) else param.grad)[0, 0] = float("nan")
    elif fault == "missing":
        param.grad = None
    elif fault == ALL:
        for each in model.parameters():
            each.grad = None


class Rates(TrainerCallback):
    """The learning rate that each step of the Trainer comes with."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def train(
    folder: str,
    fault: str,
    guard: GuardSteps | None,
    name: str = "adamw",
    sharded: bool = False,
    resume: str | None = None,
    **given: Any,
) -> dict[str, Any]:
    """A training of two micro-batches a step, clipped: its weights, and what was raised."""
    model, world, rates = make_model(), int(os.environ.get("WORLD_SIZE", 1)), Rates()
    args = TrainingArguments(
        **{
            "output_dir": folder,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "max_steps": STEPS,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "max_grad_norm": 0.5,
            "lr_scheduler_type": "constant",
            **({"ddp_backend": "gloo"} if world > 1 else {}),
            **given,
        }
    )
    own = world == 1 or fault == ALL or int(os.environ["RANK"]) == 1
    if fault == "frozen" and own:
        model.transformer.h[0].attn.c_attn.weight.requires_grad_(False)
    kind = type("Made", (Spoiling,), {"sharded": sharded, "fault": fault, "own": own})
    callbacks = [OptimizerCallback(name, lr=1e-2), rates, *([guard] if guard else [])]
    trainer = kind(model, args, train_dataset=make_data(), callbacks=callbacks)
    trainer.windows = {}
    said = ""
    try:
        trainer.train(resume_from_checkpoint=resume)
    except (RuntimeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        if fault in ("stuck", "fails"):
            if own:
                time.sleep(PATIENCE + 2)  # its connections stay open
            return {"said": said}
    return {
        "said": said,
        "steps": trainer.state.global_step,
        "skipped": guard.skipped if guard else 0,
        "rates": rates.rates,
        "norms": [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry],
        "weights": [full(param.detach()).flatten().tolist() for param in model.parameters()],
    }


def guarded(kind: str, folder: str, case: str) -> dict[str, Any]:
    """A case: "FAULT-WAY", or the reference, in which no rank has gradients for the step."""
    fault, _, way = case.partition("-")
    guard = None if fault == ALL else GuardSteps(nonfinite=way, differing=way, timeout=20) if way else GuardSteps()
    return train(folder, fault, guard, sharded=kind == "fsdp2")


def main() -> None:
    kind, folder, cases = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    broken = bool({"stuck", "fails"}.intersection(cases))
    if broken:  # with use_cpu, transformers makes a group without ddp_timeout
        dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    found = {case: guarded(kind, str(folder), case) for case in cases}
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    gc.collect()  # a living DDP module can make gloo hang
    if broken:
        os._exit(0)  # the group is broken
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
