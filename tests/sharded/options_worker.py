"""FSDP2 with its options, against one process: `options_worker.py FOLDER RANK RANKS few|all`.

Every rank sees the whole batch, so that averages of gradients are exact.
"""

from __future__ import annotations

import copy
import gc
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils.fsdp_utils import fsdp2_switch_optimizer_parameters
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

import hfoptim
from hfoptim.engine.distributed.dtensor import whole_of
from hfoptim.engine.parameter_names import bare

STEPS = 4
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("adamw", {}),
    "muon": ("muon", {}),
    "lamb": ("lamb", {}),
    "soap": ("soap", {}),
    "adamw 8bit": ("adamw", {"state_dtype": "8bit"}),
}
FEW = ("lamb", "adamw 8bit")


def kinds_of(which: str) -> list[str]:
    return [kind for kind in OPTIMIZERS if which == "all" or kind in FEW]


class Block(nn.Module):
    """Two matrices, of which the larger is large enough for codes, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(40, 130), nn.LayerNorm(130), nn.Linear(130, 40)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.norm(torch.tanh(self.up(x))))


class Network(nn.Module):
    """An embedding, blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 40)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(40, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x)


def network(dtype: torch.dtype) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network().to(dtype)


def dtype_of(kind: str) -> torch.dtype:
    return torch.float32 if "8bit" in kind else torch.float64


def make(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    name, options = OPTIMIZERS[kind]
    made: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, **options}
    return hfoptim.get_optimizer_class(name)(list(model.named_parameters()), **made)


def backward(model: nn.Module, step: int) -> None:
    random = torch.Generator().manual_seed(step)
    tokens, classes = torch.randint(9, (12,), generator=random), torch.randint(5, (12,), generator=random)
    nn.functional.cross_entropy(model(tokens), classes).backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range = range(STEPS)) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {bare(name): whole_of(param.detach()).clone() for name, param in model.named_parameters()}


def farthest(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    assert got.keys() == want.keys()
    return max(float((got[name] - want[name]).abs().max()) for name in want)


def shard(model: Network, mesh: DeviceMesh, **options: Any) -> None:
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)


def of_one_process(kind: str) -> dict[str, Tensor]:
    model = network(dtype_of(kind))
    train(model, make(kind, model))
    return weights(model)


def activation_checkpointing(kind: str, mesh: DeviceMesh) -> float:
    """Names have a part more than on one process; a checkpoint loads where they have not."""
    models = []
    for wrapped in (True, False):
        model = network(dtype_of(kind))
        if wrapped:
            model.blocks = nn.ModuleList([checkpoint_wrapper(block) for block in model.blocks])
        shard(model, mesh)
        models.append((model, make(kind, model)))
    (first, saving), (second, loading) = models
    train(first, saving, range(2))
    # Loaded state is not copied, here as in torch.
    set_optimizer_state_dict(second, loading, copy.deepcopy(get_optimizer_state_dict(first, saving)))
    with torch.no_grad():
        for mine, other in zip(second.parameters(), first.parameters(), strict=True):
            mine.copy_(other)
    for model, optimizer in models:
        train(model, optimizer, range(2, STEPS))
    assert farthest(weights(second), weights(first)) == 0.0
    return farthest(weights(first), of_one_process(kind))


def offload_to_the_cpu(kind: str, mesh: DeviceMesh) -> float:
    model = network(dtype_of(kind))
    shard(model, mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    train(model, make(kind, model))
    return farthest(weights(model), of_one_process(kind))


def mixed_precision(kind: str, mesh: DeviceMesh) -> float:
    """Parameters that are float32 between steps and bfloat16 in them: the steps of one process with these gradients."""
    model = network(torch.float32)
    shard(model, mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    return beside(kind, model, torch.float32)


def low_precision(kind: str, mesh: DeviceMesh) -> float:
    """Parameters that are always bfloat16, whose gradients are averaged in float32."""
    model = network(torch.bfloat16)
    shard(model, mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    return beside(kind, model, torch.bfloat16)


def beside(kind: str, model: nn.Module, dtype: torch.dtype) -> float:
    plain = network(dtype)
    mine, other = make(kind, model), make(kind, plain)
    for step in range(STEPS):
        mine.zero_grad()
        backward(model, step)
        for sharded, param in zip(model.parameters(), plain.parameters(), strict=True):
            assert sharded.grad is not None
            assert sharded.dtype is sharded.grad.dtype is dtype
            param.grad = whole_of(sharded.grad)
        mine.step()
        other.step()
    return farthest(weights(model), weights(plain))


def built_before(kind: str, mesh: DeviceMesh) -> str:
    """An optimizer of the parameters that sharding has put others in the place of."""
    model = network(dtype_of(kind))
    optimizer = make(kind, model)
    shard(model, mesh)
    try:
        train(model, optimizer)
    except ValueError as error:
        return str(error)
    return "nothing"


def built_before_and_given_the_new_ones(kind: str, mesh: DeviceMesh) -> float:
    """As Accelerate does."""
    model = network(dtype_of(kind))
    optimizer = make(kind, model)
    old: list[Any] = list(model.parameters())
    shard(model, mesh)
    for param, new in zip(old, model.parameters(), strict=True):
        param.data_ptr = id(new)
    fsdp2_switch_optimizer_parameters(optimizer, {id(new): new for new in model.parameters()})
    train(model, optimizer)
    return farthest(weights(model), of_one_process(kind))


def gradients_added_up(kind: str, mesh: DeviceMesh) -> float:
    """Two backward passes before a step, of which the second alone averages."""
    model: Any = network(dtype_of(kind))
    plain = network(dtype_of(kind))
    shard(model, mesh)
    mine, other = make(kind, model), make(kind, plain)
    for step in range(STEPS):
        for optimizer in (mine, other):
            optimizer.zero_grad()
        for half in range(2):
            model.set_requires_gradient_sync(half == 1)
            backward(model, 2 * step + half)
        if kind == "adamw 8bit":  # float32 adds up otherwise: the same gradients
            for param, sharded in zip(plain.parameters(), model.parameters(), strict=True):
                param.grad = whole_of(sharded.grad)
        else:
            for half in range(2):
                backward(plain, 2 * step + half)
        mine.step()
        other.step()
    return farthest(weights(model), weights(plain))


TASKS: tuple[Callable[[str, DeviceMesh], Any], ...] = (
    activation_checkpointing,
    offload_to_the_cpu,
    mixed_precision,
    low_precision,
    built_before,
    built_before_and_given_the_new_ones,
    gradients_added_up,
)


def main() -> None:
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store = f"file://{folder}/options.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    mesh = init_device_mesh("cpu", (ranks,))
    found = {task.__name__: {kind: task(kind, mesh) for kind in kinds_of(sys.argv[4])} for task in TASKS}
    (folder / f"options.{rank}.json").write_text(json.dumps(found))
    # A gloo thread that still holds a tensor when Python ends aborts the process.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
