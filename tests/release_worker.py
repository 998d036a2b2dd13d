"""Gradient release under FSDP2, one of two processes of test_gradient_release.py: `release_worker.py FOLDER RANK`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import hfoptim

# Rules of single entries, of sums over a tensor, and of whole matrices.
OPTIMIZERS: dict[str, Callable[[Any], hfoptim.Muon | hfoptim.AdamW | hfoptim.Adafactor]] = {
    "adamw": lambda named: hfoptim.AdamW(named, lr=1e-2, weight_decay=0.1),
    "adafactor": lambda named: hfoptim.Adafactor(named, beta1=0.9),
    "muon": lambda named: hfoptim.Muon(named, lr=1e-2),
}


def train(name: str, rank: int, release: bool) -> list[Tensor]:
    """The parameters after a few steps, whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    optimizer = OPTIMIZERS[name](list(model.named_parameters()))
    if release:
        hfoptim.prepare_for_gradient_release(model, optimizer)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(4):
        model(torch.randn(4, 6, generator=generator, dtype=torch.float64)).square().mean().backward()
        assert all((param.grad is None) is release for param in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return [cast(DTensor, param).full_tensor() for param in model.parameters()]


def main() -> None:
    folder, rank = sys.argv[1], int(sys.argv[2])
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name in OPTIMIZERS:
        torch.testing.assert_close(train(name, rank, True), train(name, rank, False), rtol=1e-12, atol=1e-14)
    gc.collect()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
