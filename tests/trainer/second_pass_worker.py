"""Trainings with optimizers that need a second gradient, each next to a plain loop over the steps' big batches.

On one process: `measure(case)`. On several: torchrun this file with "ddp" or "fsdp2" and a folder, which gets one JSON
for each process.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grad_norm_
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import hfoptim
from hfoptim import OptimizerCallback
from hfoptim.engine import unwrap
from hfoptim.trainer import SecondPass

LENGTH, VOCABULARY, ROWS = 8, 16, 10  # in batches of 2 and windows of 2: the last window is a partial one


@dataclass
class Case:
    """One training: which optimizer, its options, clipped at what, in bfloat16's autocast or float64, its snapshots."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    clip: float = 0.0
    autocast: bool = False
    snapshot_every: int | None = None


CASES = {
    "sam_sgd": Case("sam_sgd", {"lr": 0.5, "rho": 0.2, "momentum": 0.9}),
    "sam_adamw clipped": Case(
        "sam_adamw", {"lr": 1e-2, "rho": 0.2, "adaptive": True, "eps": 1e-3, "weight_decay": 0.0}, clip=0.1
    ),
    "sam_sgd autocast": Case("sam_sgd", {"lr": 0.5, "rho": 0.2}, autocast=True),
    "sam_momo": Case("sam_momo", {"lr": 1.0, "rho": 0.2}),
    "gsam_sgd": Case("gsam_sgd", {"lr": 0.5, "rho": 0.2}),
    "wsam_sgd": Case("wsam_sgd", {"lr": 0.5, "rho": 0.2, "wsam_gamma": 0.7}),
    "looksam_sgd clipped": Case("looksam_sgd", {"lr": 0.5, "rho": 0.2, "looksam_k": 2}, clip=0.1),
    "friendlysam_sgd clipped": Case("friendlysam_sgd", {"lr": 0.5, "rho": 0.2}, clip=0.1),
    "svrg_sgd": Case("svrg_sgd", {"lr": 0.5, "momentum": 0.9}, snapshot_every=2),
    "svrg_sgd clipped": Case("svrg_sgd", {"lr": 0.5, "svrg_snapshots": 3}, clip=0.1),
    "svrg_sgd autocast": Case("svrg_sgd", {"lr": 0.1}, autocast=True),
    "svrg_momo": Case("svrg_momo", {"lr": 1.0, "svrg_coefficient": 1.0}),
    "adahessian": Case("adahessian", {"lr": 1e-2, "eps": 1e-3, "n_samples": 2}),
    "sophiah clipped": Case("sophiah", {"lr": 1e-1, "update_period": 2, "eps": 1e-3}, clip=0.1),
    "sam_adahessian": Case("sam_adahessian", {"lr": 1e-2, "eps": 1e-3, "rho": 0.2}),
    "mars clipped": Case("mars", {"lr": 1e-2, "gamma": 0.5, "eps": 1e-3, "is_approx": False}, clip=0.1),
    "bsam": Case("bsam", {"lr": 0.5, "rho": 0.05, "num_data": 1e3, "weight_decay": 0.0}),
    "bsam clipped": Case("bsam", {"lr": 4.0, "rho": 0.05, "num_data": 1e3, "weight_decay": 0.0}, clip=0.1),
    "lbfgs": Case("lbfgs", {"lr": 0.1, "max_iter": 4}),
    "lbfgs search": Case("lbfgs", {"max_iter": 4, "line_search_fn": "strong_wolfe"}),
    "sophiag": Case("sophiag", {"lr": 1e-2, "bs": 28, "update_period": 2, "betas": (0.9, 0.5), "weight_decay": 0.0}),
}


def drawn(logits: torch.Tensor) -> torch.Tensor:
    """In place of labels drawn at random."""
    return (logits.argmax(-1) + 1) % VOCABULARY


def make_model(case: Case) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": VOCABULARY, "n_positions": LENGTH}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **still))
    return model if case.autocast else model.double()


def make_data() -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(3))
    labels = tokens.clone()
    labels[:, 0] = -100
    return [{"input_ids": one, "labels": other} for one, other in zip(tokens, labels, strict=True)]


class Windows(Trainer):
    """Notes the batches of each step, which come before those of its snapshot."""

    windows: dict[int, list[dict[str, torch.Tensor]]]
    sharded = False
    state_dict_type = "SHARDED_STATE_DICT"

    def create_accelerator_and_postprocess(self) -> None:
        """With FSDP2, which Accelerate takes for the processes of GPUs alone; torch has it on CPUs, too."""
        super().create_accelerator_and_postprocess()
        if self.sharded:
            plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2,
                auto_wrap_policy="transformer_based_wrap",
                transformer_cls_names_to_wrap=["GPT2Block"],
                cpu_ram_efficient_loading=False,
                state_dict_type=self.state_dict_type,
            )
            state = self.accelerator.state
            state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        own = [{name: value.clone() for name, value in batch.items()} for batch in batches]
        self.windows.setdefault(self.state.global_step, own)
        return batches, items


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []


def by_hand(
    case: Case,
    model: GPT2LMHeadModel,
    optimizer: Any,
    batch: dict[str, torch.Tensor],
    epoch: list[dict[str, torch.Tensor]] | None,
) -> float:
    """One step with the batch as a whole, as its author would write it; before it a snapshot with all of an epoch."""

    def clip() -> None:
        if case.clip:
            clip_grad_norm_(model.parameters(), case.clip)

    def forward(inputs: dict[str, torch.Tensor] = batch) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast), sdpa_kernel(SDPBackend.MATH):
            return model(**inputs).loss

    if epoch is not None:
        grads = []
        for other in epoch:
            optimizer.zero_grad()
            forward(other).backward()
            clip()
            grads.append([param.grad for param in model.parameters()])

        def whole() -> None:
            for param, *parts in zip(model.parameters(), *grads, strict=True):
                param.grad = sum(parts) / len(parts)

        optimizer.snapshot(whole)

    def backward(graph: bool = False) -> torch.Tensor:
        optimizer.zero_grad()
        loss = forward()
        loss.backward(create_graph=graph)
        return loss.detach()

    if case.name == "lbfgs":
        return float(optimizer.step(backward))
    if case.name in ("mars", "bsam"):
        first: list[torch.Tensor] = []

        def clipped() -> torch.Tensor:
            loss = backward()
            clip()
            first.append(loss)
            return loss

        found = float(optimizer.step(clipped))
        return first[0].item() if case.name == "bsam" else found
    if isinstance(optimizer, hfoptim.SVRG):
        loss = backward()
        clip()
        if case.name == "svrg_momo":
            momo: Any = optimizer.optimizer
            momo.add_loss(loss)
        if optimizer.second_is_due:
            optimizer.first_step(zero_grad=True)
            backward()
            clip()
        optimizer.second_step(zero_grad=True)
        return loss.item()
    loss = backward(case.name in ("adahessian", "sophiah"))
    if isinstance(optimizer, hfoptim.SAM) and optimizer.second_is_due:
        clip()
        optimizer.first_step(zero_grad=True)
        worst = backward(case.name == "sam_adahessian")
        inner: Any = optimizer.base_optimizer
        inner.add_curvature()  # before clipping and going back, which are in place
        clip()
        inner.add_loss(worst)
        optimizer.second_step(zero_grad=True)
        return loss.item()
    if case.name == "sophiah":
        optimizer.add_curvature()  # before clipping, which is in place
    clip()
    if isinstance(optimizer, hfoptim.SAM):
        optimizer.second_step()  # of LookSAM, in between
    else:
        optimizer.step()
    optimizer.zero_grad()
    if case.name == "sophiag" and optimizer.estimate_is_due:
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1).float(), drawn(logits).flatten()).backward()
        optimizer.update_hessian()
        optimizer.zero_grad()
    return loss.item()


def measure(case: Case, folder: str, epochs: int = 2, sharded: bool = False) -> dict[str, Any]:
    """Train with a Trainer, which shards the model by FSDP2 or not, and by hand."""
    model, world = make_model(case), int(os.environ.get("WORLD_SIZE", 1))
    reference, start = copy.deepcopy(model), [param.detach().clone() for param in model.parameters()]
    args = TrainingArguments(
        folder,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=case.clip,
        lr_scheduler_type="constant",
        num_train_epochs=epochs,
        bf16=case.autocast,
        **({"ddp_backend": "gloo"} if world > 1 else {}),
    )
    losses = Losses()
    callbacks = [OptimizerCallback(case.name, **case.options), losses]
    callbacks += [SecondPass(case.snapshot_every)] if case.snapshot_every else []
    kind = type("Sharded", (Windows,), {"sharded": sharded})
    trainer = kind(model, args, train_dataset=make_data(), callbacks=callbacks)
    trainer.windows = {}
    with mock.patch.object(torch.distributions.Categorical, "sample", lambda self: drawn(self.logits)):
        trainer.train()
    windows = [window for window in trainer.windows.values() if window]
    if world > 1:
        everyones: list[Any] = [None] * world
        dist.all_gather_object(everyones, windows)
        windows = [[batch for part in parts for batch in part] for parts in zip(*everyones, strict=True)]
    names = {param: name for name, param in model.named_parameters()}
    assert all(isinstance(param, DTensor) is sharded for param in names)
    theirs = dict(reference.named_parameters())
    groups = [[theirs[names[param]] for param in g["params"]] for g in unwrap(trainer.optimizer).param_groups]
    params: Any = [{"params": group, "weight_decay": 0.0} for group in groups if group]
    cls = hfoptim.get_optimizer_class(case.name)
    optimizer = cls(groups[0] if case.name == "lbfgs" else params, **case.options)
    reference.train()
    found = []
    world_of_one = {name: os.environ.pop(name) for name in ("WORLD_SIZE", "RANK") if name in os.environ}
    batches = [{name: torch.cat([part[name] for part in window]) for name in window[0]} for window in windows]
    of_epoch = len(batches) // epochs
    for step, batch in enumerate(batches):
        due = case.name.startswith("svrg") and step % (case.snapshot_every or of_epoch) == 0
        first = step // of_epoch * of_epoch
        found.append(by_hand(case, reference, optimizer, batch, batches[first : first + of_epoch] if due else None))
    os.environ.update(world_of_one)
    ends = [full(param.detach()) for param in model.parameters()]
    return {
        "steps": len(found),
        "difference": largest(ends, [param.detach() for param in reference.parameters()]),
        "losses": max(abs(one - other) for one, other in zip(losses.losses, found, strict=True))
        if losses.losses
        else 0,
        "moved": largest(start, ends),
        "weights": hashlib.sha256(b"".join(end.double().numpy().tobytes() for end in ends)).hexdigest(),
    }


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def largest(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    found = {name: measure(CASES[name], str(folder), epochs=1, sharded=kind == "fsdp2") for name in sys.argv[3:]}
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    gc.collect()  # a living DDP module can make gloo hang
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
