"""Trainings with ragged labels and a partial last window, each next to a plain loop over the big batches.

On one process: `measure(case)`. On several: torchrun this file with a folder, which gets one JSON for each process, and
names of cases.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from hfoptim import GradientAccumulator, OptimizerCallback
from hfoptim.trainer import TokenWeights

VOCABULARY, LENGTH = 16, 8
OPTIMIZERS = {
    "sgd": ({"lr": 0.1, "momentum": 0.9, "nesterov": False}, torch.optim.SGD),
    "adam": ({"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-3}, torch.optim.Adam),
}


@dataclass
class Case:
    """One training.

    Args:
        model: "gpt2", "llama", "t5" or "plain", whose forward takes nothing but ids and labels.
        how: "trainer" alone, with "token_weights", or an "accumulator" in place of the Trainer's accumulation.
        optimizer: "sgd" or "adam".
        rows: sequences in the data; 22 in batches of 2 are windows of 4, 4 and 3 on one process, 4 and 2 on two.
        first: whether the first label of a row is there; in a causal model nothing predicts it.
        empty: how many rows have no label that counts.
        iterable: data without a length.
        given: TrainingArguments.
    """

    model: str
    how: str = "trainer"
    optimizer: str = "sgd"
    rows: int = 22
    first: bool = True
    empty: int = 0
    iterable: bool = False
    given: dict[str, Any] = field(default_factory=dict)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.embedding(input_ids))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def make_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "plain":
        return Plain()
    if name == "gpt2":
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": LENGTH}
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=VOCABULARY, **sizes, **still))
    if name == "llama":
        sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCABULARY, **sizes))
    sizes = {"num_layers": 1, "num_heads": 2, "d_model": 16, "d_kv": 8, "d_ff": 32}
    special = {"dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=VOCABULARY, **sizes, **special))


def make_data(case: Case) -> Any:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for i in range(case.rows):
        ids = torch.randint(2, VOCABULARY, (LENGTH,), generator=generator)
        labels = ids.clone()
        labels[int(torch.randint(2, LENGTH + 1, (), generator=generator)) :] = -100
        if not case.first:
            labels[0] = -100
        if i < case.empty:
            labels[:] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return Stream(rows) if case.iterable else rows


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


class RecordingTrainer(Trainer):
    recorder: Recorder

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.recorder.window.append({name: value.clone() for name, value in inputs.items()})
        return super().training_step(model, inputs, num_items_in_batch)


class AccumulatingTrainer(RecordingTrainer):
    """The recipe of docs/trainer.md: GradientAccumulator in place of the Trainer's own accumulation."""

    accumulator = None
    complete = False

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.accumulator is None:
            self.accumulator = GradientAccumulator(model)
        elif self.complete:
            self.accumulator.reset()
        tokens = inputs["labels"][:, 1:].ne(-100).sum()
        with self.accumulator.no_sync():
            loss = super().training_step(model, inputs)  # the gradients of its mean / the number of micro-batches
        self.accumulator(weight=tokens)
        self.complete = self.accelerator.sync_gradients
        if self.complete:
            for param in self.accumulator.apply_to():
                param.grad.mul_(self.current_gradient_accumulation_steps)
        return loss


class Recorder(TrainerCallback):
    """Keeps the micro-batches of every window, and the parameters after every step."""

    def __init__(self) -> None:
        self.windows: list[list[dict[str, torch.Tensor]]] = []
        self.params: list[list[torch.Tensor]] = []
        self.losses: list[float] = []
        self.window: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.windows.append(self.window)
        self.params.append([param.detach().clone() for param in model.parameters()])
        self.window = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def big_batches(case: Case, model: nn.Module, windows: list[Any]) -> tuple[list[Any], list[float]]:
    """Parameters after each step of a plain loop, and its losses."""
    options, kind = OPTIMIZERS[case.optimizer]
    optimizer = kind(model.parameters(), **options)
    params, losses = [], []
    for window in windows:
        whole = {name: torch.cat([batch[name] for batch in window]) for name in window[0]}
        out = model(**whole)
        logits, labels = out["logits"], whole["labels"]
        if case.model in ("gpt2", "llama"):
            logits, labels = logits[:, :-1], labels[:, 1:]
        total = F.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            reduction="sum",
            label_smoothing=case.given.get("label_smoothing_factor", 0.0),
        )
        loss = total / labels.ne(-100).sum().clamp(min=1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        params.append([param.detach().clone() for param in model.parameters()])
        losses.append(loss.item())
    return params, losses


def measure(case: Case, folder: str) -> dict[str, Any]:
    """Train both ways; the largest difference of a parameter after any step, of the logged losses, and more."""
    model = make_model(case.model)
    reference = copy.deepcopy(model)
    start = [param.detach().clone() for param in model.parameters()]
    recorder = Recorder()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    options, _ = OPTIMIZERS[case.optimizer]
    args = TrainingArguments(
        folder,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        **({"max_steps": 5} if case.iterable else {"num_train_epochs": 2}),
        **({"ddp_backend": "gloo"} if world > 1 else {}),
        **case.given,
    )
    callbacks = [OptimizerCallback(case.optimizer, **options), recorder]
    if case.how == "token_weights":
        callbacks.append(TokenWeights())
    cls = AccumulatingTrainer if case.how == "accumulator" else RecordingTrainer
    trainer = cls(model, args, train_dataset=make_data(case), callbacks=callbacks)
    trainer.recorder = recorder
    trainer.train()
    windows = recorder.windows
    if world > 1:
        everyones: list[Any] = [None] * world
        dist.all_gather_object(everyones, windows)
        windows = [[batch for part in parts for batch in part] for parts in zip(*everyones, strict=True)]
    params, losses = big_batches(case, reference, windows)
    return {
        "windows": [len(window) for window in recorder.windows],
        "difference": max(map(largest, recorder.params, params)),
        "losses": max(abs(one - other) for one, other in zip(recorder.losses, losses, strict=True)),
        "moved": largest(start, params[-1]),
    }


def largest(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def main() -> None:
    from test_token_weights import CASES  # beside this file

    folder = Path(sys.argv[1])
    found = {name: measure(CASES[name], str(folder)) for name in sys.argv[2:]}
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    gc.collect()  # a living DDP module can make gloo hang
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
