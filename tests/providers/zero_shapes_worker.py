"""What test_deepspeed_shapes.py runs on each process: `zero_shapes_worker.py FOLDER STAGE CASE...`, without a Trainer.

For each case what was found, in FOLDER/CASE.RANK.pt: weights, or the sentence of an error.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hfoptim

STEPS, HALF, LR = 6, 3, 0.02


class Network(nn.Module):
    """Matrices, vectors and a kernel of sides that two ranks do not divide evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)
        self.kernel = nn.Parameter(torch.empty(3, 2, 1, 3))
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(0.5 * torch.randn(param.shape, generator=random))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.norm(torch.tanh(self.first(x))))
        return found * self.kernel.sum((1, 2, 3))


def batches() -> list[Tensor]:
    random = torch.Generator().manual_seed(6)
    return [torch.randn(4, 5, generator=random) for _ in range(STEPS)]


def loss_of(model: Any, x: Tensor) -> Tensor:
    return model(x.to(next(model.parameters()).dtype)).float().square().mean()


def make(name: str, model: nn.Module, **options: Any) -> Any:
    """The optimizer on two groups, of which one has no weight decay."""
    named = list(model.named_parameters())
    decayed = [pair for pair in named if pair[1].ndim > 1]
    rest = [pair for pair in named if pair[1].ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return hfoptim.create_optimizer_v2(groups, name, lr=LR, **options)


def switch(optimizer: Any, mode: str) -> None:
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


def alone(name: str, low: bool = False, clip: float = 0.0, pieces: int = 1, **options: Any) -> dict[str, Tensor]:
    """The weights after the steps on one process.

    Args:
        name: of the optimizer.
        low: whether the model is in bfloat16, and weights in float32 are kept beside it.
        clip: what the norm of all gradients is clipped to; 0: nothing.
        pieces: in how many pieces each batch is taken.
    """
    model, masters = Network(), Network()
    model = model.to(torch.bfloat16) if low else model
    with torch.no_grad():
        for own, master in zip(model.parameters(), masters.parameters(), strict=True):
            master.copy_(own)
    optimizer = make(name, masters, **options)
    switch(optimizer, "train")
    for x in batches():
        model.zero_grad()
        for piece in x.chunk(pieces):
            (loss_of(model, piece) / pieces).backward()
        for own, master in zip(model.parameters(), masters.parameters(), strict=True):
            assert own.grad is not None
            master.grad = own.grad.float()
        if clip:
            grads = [master.grad for master in masters.parameters() if master.grad is not None]
            norm = torch.cat([grad.flatten() for grad in grads]).norm()
            for grad in grads:
                grad /= max(1.0, float((norm + 1e-6) / clip))
        optimizer.step()
        with torch.no_grad():
            for own, master in zip(model.parameters(), masters.parameters(), strict=True):
                own.copy_(master)
    switch(optimizer, "eval")
    with torch.no_grad():
        for own, master in zip(model.parameters(), masters.parameters(), strict=True):
            own.copy_(master)
    return {key: value.detach().clone() for key, value in model.named_parameters()}


@contextlib.contextmanager
def engine_of(name: str, stage: int, more: dict[str, Any], **options: Any) -> Iterator[tuple[Any, Any, Network]]:
    """DeepSpeed's engine around the model, its optimizer, and the model."""
    import deepspeed

    model = Network()
    optimizer = make(name, model, **options)
    zero = {"stage": stage, "stage3_param_persistence_threshold": 10, **more.pop("zero", {})}
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        **more,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    try:
        yield engine, optimizer, model
    finally:
        engine.destroy()


def train(engine: Any, steps: range, pieces: int = 1) -> None:
    for x in batches()[steps.start : steps.stop]:
        for piece in x.chunk(pieces):
            engine.backward(loss_of(engine, piece))
            engine.step()


def weights(model: nn.Module, stage: int) -> dict[str, Tensor]:
    import deepspeed

    found = {}
    for key, param in model.named_parameters():
        # One by one: of several, DeepSpeed waits for the last alone, which is not the last to arrive with gloo.
        with deepspeed.zero.GatheredParameters([param], enabled=stage == 3):
            found[key] = param.detach().clone()
    return found


def run(case: str, stage: int, folder: Path) -> Any:
    """What a case gives: `NAME`, or `NAME:WAY` with a way of the test's, `offload`, `wrapped`, `saved` or `universal`.

    `universal` goes on with the universal checkpoint that was made of what `saved` leaves behind.
    """
    name, _, how = case.partition(":")
    ways: dict[str, dict[str, Any]] = {
        "bf16": {"bf16": {"enabled": True}},
        "clip": {"gradient_clipping": 0.05},
        "pieces": {"gradient_accumulation_steps": 2},
        "small": {"zero": {"sub_group_size": 8}},
        "offload": {"zero": {"offload_optimizer": {"device": "cpu"}}, "zero_force_ds_cpu_optimizer": False},
        "universal": {"checkpoint": {"load_universal": True}},
    }
    more = ways.get(how, {})
    with engine_of(name, stage, more) as (engine, optimizer, model):
        if how == "wrapped":
            hfoptim.Lookahead(optimizer)
        switch(optimizer, "train")
        if how == "universal":
            engine.load_checkpoint(str(folder / f"{name}:saved"), tag="universal")
            train(engine, range(HALF, STEPS))
            return weights(model, stage)
        if how not in ("resume", "saved"):
            train(engine, range(STEPS), 2 if how == "pieces" else 1)
            switch(optimizer, "eval")
            return weights(model, stage)
        train(engine, range(HALF))
        switch(optimizer, "eval")
        engine.save_checkpoint(str(folder / case), tag="half")
        if how == "saved":
            return weights(model, stage)
    with engine_of(name, stage, more) as (engine, optimizer, model):
        engine.load_checkpoint(str(folder / case), tag="half")
        switch(optimizer, "train")
        train(engine, range(HALF, STEPS))
        switch(optimizer, "eval")
        return weights(model, stage)


def main() -> None:
    folder, stage, cases = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    import deepspeed

    # Minutes of compiling; gloo does as well. As an attribute of its package it is not to be had.
    vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    rank = int(os.environ["RANK"])
    for case in cases:
        found: Any
        try:
            found = run(case, stage, folder)
        except (ValueError, RuntimeError) as error:
            found = f"{type(error).__name__}: {error}"
        torch.save(found, folder / f"{case}.{rank}.pt")


if __name__ == "__main__":
    main()
