"""What test_deepspeed_zero.py runs on each process: `zero_worker.py FOLDER STAGE NAME...`, a Trainer under ZeRO.

For each name the weights after the training, or the sentence with which it is refused, in FOLDER/NAME.RANK.pt.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hfoptim.trainer import OptimizerCallback

WIDTH, STEPS = 6, 4


class Regression(nn.Module):
    """Two layers and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH + 1), nn.Linear(WIDTH + 1, 1)
        random = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(0.5 * torch.randn(param.shape, generator=random))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found = self.outer(torch.tanh(self.inner(x.to(self.inner.weight.dtype)))).squeeze(-1)
        return {"loss": nn.functional.mse_loss(found.float(), labels), "logits": found}


def rows(ranks: int) -> list[dict[str, Tensor]]:
    """Examples, each as often in a row as there are ranks: all of them see the same batches."""
    random = torch.Generator().manual_seed(4)
    made = []
    for _ in range(64):
        x = torch.randn(WIDTH, generator=random)
        made += [{"x": x, "labels": x.sum().sin()}] * ranks
    return made


def train(name: str, folder: Path, ranks: int, deepspeed: dict[str, Any] | None, **more: Any) -> dict[str, Tensor]:
    """Train by the name, and give the weights."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=0.02,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        train_sampling_strategy="sequential",
        deepspeed=deepspeed,
        **more,
    )
    model = Regression()
    trainer = Trainer(model, arguments, train_dataset=rows(ranks), callbacks=[OptimizerCallback(name)])
    trainer.train()
    stage = (deepspeed or {}).get("zero_optimization", {}).get("stage", 0)
    if stage == 0:
        return {key: value.detach().clone() for key, value in model.named_parameters()}
    import deepspeed as ds

    found = {}
    for key, value in model.named_parameters():
        # One by one: of several, DeepSpeed waits for the last alone, which is not the last to arrive with gloo.
        with ds.zero.GatheredParameters([value], enabled=stage == 3):
            found[key] = value.detach().float().clone()
    return found


def config(stage: int, **more: Any) -> dict[str, Any]:
    """What DeepSpeed is given."""
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        **more,
    }


def main() -> None:
    folder, stage, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    # Minutes of compiling; gloo does as well. As an attribute of its package it is not to be had.
    vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for name in names:
        found: Any
        try:
            found = train(name, folder / name, ranks, config(stage))
        except ValueError as error:
            found = str(error)
        torch.save(found, folder / f"{name}.{rank}.pt")


if __name__ == "__main__":
    main()
