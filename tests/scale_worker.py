"""What test_scale_model.py runs: `scale_worker.py FOLDER RANKS real|paper`: costs of a step, by optimizer.

`real` is one of so many processes over gloo under FSDP2; `paper` is alone, with the benchmark's own stand-in.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from generated import put_in
from scale_model import DDP, OPTIMIZERS, counted
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hfoptim.factory.memory import as_on_the_first, twin_of


class Network(nn.Module):
    """Matrices of several shapes, one that no number of ranks divides evenly, and vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(96, 32)
        self.layers = nn.ModuleList([nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 33), nn.LayerNorm(32)])
        self.even = nn.ModuleList([nn.Linear(64, 64, bias=False) for _ in range(8)])
        self.lm_head = nn.Linear(32, 96, bias=False)


def main(folder: Path, ranks: int, real: bool) -> None:
    found = {}
    if real:
        dist.init_process_group("gloo")
    with nullcontext() if real else as_on_the_first(ranks) as made:
        for name, (options, every) in OPTIMIZERS.items():
            with torch.device("cpu" if real else "meta"):
                model: nn.Module = Network()
                if made is None:
                    fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
                else:
                    model = twin_of(model, made)
                alone = divided_matrices(model)
                everywhere: nn.Module = Network()
            with nullcontext() if real else put_in():
                found[name] = asdict(counted(model, name, options, every))
                if name in DDP:
                    own = {**options, "distribute_matrices": True}
                    found[f"{name}, ddp"] = asdict(counted(everywhere, name, own, every))
                if name == "muon":
                    found["muon, even"] = asdict(counted(alone, name, options, 1))
    if not real or dist.get_rank() == 0:
        (folder / f"{'real' if real else 'paper'}.json").write_text(json.dumps(found))


def divided_matrices(model: nn.Module) -> nn.Module:
    """The matrices that all ranks have equally much of, as a model of their own."""
    alone = nn.Module()
    alone.even = model.get_submodule("even")
    return alone


if __name__ == "__main__":
    torch.manual_seed(0)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "real")
