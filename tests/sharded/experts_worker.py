"""Mixtures of experts, of which each process has some: `experts_worker.py FOLDER RANK RANKS few|all`.

Every rank sees all tokens, and takes its own experts' part of the outputs, which are added up over the ranks.
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
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

import hfoptim
from hfoptim.engine.distributed.dtensor import local, whole_of

EXPERTS, WIDTH, HIDDEN, CLASSES, TOKENS, STEPS = 4, 6, 5, 3, 24, 5
TOLERANCE = 1e-9


class Summed(torch.autograd.Function):
    """The sum over the ranks, each of which goes on with all of it."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Copied(torch.autograd.Function):
    """The same on all ranks, each of which uses it for a part of a sum."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor) -> Tensor:
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


class Expert(nn.Module):
    """One, with parameters of its own; or several, as two stacks."""

    def __init__(self, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)


class Mixture(nn.Module):
    """Experts as two stacks, or one by one; a token's expert is decided by its number, its share by a router."""

    def __init__(self, mine: range, stacked: bool, alone: bool) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64) / 2  # noqa: E731
        self.embed = nn.Parameter(draw(TOKENS, WIDTH))
        self.router = nn.Parameter(draw(WIDTH))
        self.head = nn.Parameter(draw(CLASSES, WIDTH))
        up, down = draw(EXPERTS, HIDDEN, WIDTH), draw(EXPERTS, WIDTH, HIDDEN)
        self.mine, self.alone = mine, alone
        if stacked:
            self.experts: nn.Module = Expert(*(each[mine.start : mine.stop].clone() for each in (up, down)))
        else:
            self.experts = nn.ModuleDict({str(e): Expert(up[e].clone(), down[e].clone()) for e in mine})

    def weights_of(self, expert: int) -> tuple[Tensor, Tensor]:
        if isinstance(self.experts, Expert):
            return local(self.experts.up)[expert - self.mine.start], local(self.experts.down)[expert - self.mine.start]
        own: Any = self.experts[str(expert)]
        return own.up, own.down

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed[tokens]
        gate = torch.sigmoid(x @ self.router)[:, None]
        x, gate = (x, gate) if self.alone else (Copied.apply(x), Copied.apply(gate))
        out = 0.0 * x * gate  # a rank whose experts no token reaches enters the collectives of the backward pass, too
        for expert in self.mine:
            chosen = (tokens % EXPERTS == expert).nonzero().squeeze(1)
            if len(chosen):
                up, down = self.weights_of(expert)
                out = out.index_add(0, chosen, gate[chosen] * torch.tanh(x[chosen] @ up.T) @ down.T)
        return (out if self.alone else Summed.apply(out)) @ self.head.T


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Tokens and classes. No token of the second step reaches expert 3, none of the third those of the last rank."""
    random = torch.Generator().manual_seed(step)
    tokens = torch.randint(TOKENS, (16,), generator=random)
    reached = {2: (0, 1, 2), 3: (0, 1)}.get(step, range(EXPERTS))
    tokens = tokens[torch.isin(tokens % EXPERTS, torch.tensor(list(reached)))]
    return tokens, tokens % CLASSES


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        tokens, classes = batch(step)
        nn.functional.cross_entropy(model(tokens), classes).backward()
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.grad is None:  # no token has reached it: on one process its gradient is zero
                    param.grad = torch.zeros_like(param)
        optimizer.step()


NAMES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "lamb": {"max_grad_norm": None},
    "lamb clipped": {"max_grad_norm": 0.01},
    "muon": {},
    "normuon": {},
    "soap": {},
    "shampoo": {},
    "adafactor": {"relative_step": False},
    "prodigy": {"lr": 1.0, "d0": 1e-3},
    "adamw_schedule_free": {},
}

# One of each kind to the engine: norms of tensors, sums over all, matrices.
FEW = ("lamb clipped", "muon", "adafactor")
# Those that sum over all parameters.
SUMS = {"prodigy", "lamb clipped"}


def names_of(which: str) -> list[str]:
    return [name for name in NAMES if which == "all" or name in FEW]


def optimizer_of(name: str, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    made: dict[str, Any] = {"lr": 0.02, **NAMES[name], **options}
    named = [(key.removeprefix("module."), param) for key, param in model.named_parameters()]
    return hfoptim.get_optimizer_class(name.split()[0])(named, **made)


def of_one_process(name: str, stacked: bool, **options: Any) -> dict[str, Tensor]:
    model = Mixture(range(EXPERTS), stacked, alone=True)
    train(model, optimizer_of(name, model, **options))
    return {key: param.detach() for key, param in model.named_parameters()}


def mine() -> range:
    share = EXPERTS // dist.get_world_size()
    return range(share * dist.get_rank(), share * (dist.get_rank() + 1))


def stacks(mesh: DeviceMesh) -> Mixture:
    """The experts as DTensors that are divided between them, all else as it was."""
    model = Mixture(mine(), stacked=True, alone=False)
    for key in ("up", "down"):
        part = model.experts.get_parameter(key).detach()
        setattr(model.experts, key, nn.Parameter(DTensor.from_local(part, mesh, [Shard(0)], run_check=False)))
    return model


def by_fsdp2(model: Mixture, mesh: DeviceMesh) -> nn.Module:
    fully_shard(model, mesh=mesh, ignored_params={p for key, p in model.named_parameters() if is_expert(key)})
    return model


def by_ddp(model: Mixture, mesh: DeviceMesh) -> nn.Module:
    left_out = [key for key, _ in model.named_parameters() if is_expert(key)]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, left_out)
    return nn.parallel.DistributedDataParallel(model)


def is_expert(name: str) -> bool:
    return name.startswith("experts.")


WAYS: dict[str, Callable[[Mixture, DeviceMesh], nn.Module]] = {"fsdp2": by_fsdp2, "ddp": by_ddp}


def farthest(model: nn.Module, want: dict[str, Tensor]) -> float:
    found = 0.0
    for key, param in model.named_parameters():
        found = max(found, float((whole_of(param.detach()) - want[key.removeprefix("module.")]).abs().max()))
    return found


def divided_stacks(mesh: DeviceMesh, names: list[str]) -> dict[str, float]:
    """Every rank has some of the experts of two stacks."""
    found = {}
    for name in names:
        want = of_one_process(name, stacked=True)
        for way, wrap in WAYS.items():
            model = wrap(stacks(mesh), mesh)
            train(model, optimizer_of(name, model))
            found[f"{name} {way}"] = farthest(model, want)
    return found


def own_experts(mesh: DeviceMesh, names: list[str]) -> dict[str, Any]:
    """Plain parameters that one rank alone has."""
    found: dict[str, Any] = {}
    for name in names:
        want = of_one_process(name, stacked=False)
        for way, wrap in WAYS.items():
            model = wrap(Mixture(mine(), stacked=False, alone=False), mesh)
            optimizer = optimizer_of(name, model)
            try:
                if name in SUMS and way == "ddp":  # beside which nothing tells an optimizer that ranks differ
                    hfoptim.StepGuard(optimizer)
                train(model, optimizer)
                found[f"{name} {way}"] = farthest(model, want)
            except ValueError as error:
                found[f"{name} {way}"] = str(error)
    return found


def each_on_its_own(mesh: DeviceMesh, names: list[str]) -> dict[str, float]:
    """How far stacks are from experts that are parameters of their own, on one process."""
    found = {}
    for name in names:
        stacked, apart = (of_one_process(name, stacked=kind) for kind in (True, False))
        away = [
            (stacked[f"experts.{key}"][e] - apart[f"experts.{e}.{key}"]).abs().max()
            for e in range(EXPERTS)
            for key in ("up", "down")
        ]
        found[name] = float(torch.stack(away).max())
    return found


def from_many_to_one(mesh: DeviceMesh, names: list[str]) -> dict[str, float]:
    """A run with divided stacks goes on with whole ones on one process, and the other way round."""
    found = {}
    options = StateDictOptions(full_state_dict=True)
    for name in names:
        many, one = by_fsdp2(stacks(mesh), mesh), Mixture(range(EXPERTS), stacked=True, alone=True)
        first, second = optimizer_of(name, many), optimizer_of(name, one)
        train(many, first)
        one.load_state_dict({key: whole_of(param.detach()) for key, param in many.named_parameters()})
        # Copied, as loaded state is not, and what is no DTensor is not gathered.
        set_optimizer_state_dict(one, second, copy.deepcopy(get_optimizer_state_dict(many, first, options=options)))
        train(many, first)
        train(one, second)
        there = farthest(many, dict(one.named_parameters()))
        again = by_fsdp2(stacks(mesh), mesh)
        set_model_state_dict(again, one.state_dict(), options=options)
        third = optimizer_of(name, again)
        set_optimizer_state_dict(again, third, copy.deepcopy(get_optimizer_state_dict(one, second)), options=options)
        train(again, third)
        train(one, second)
        found[name] = max(there, farthest(again, dict(one.named_parameters())))
    return found


TASKS = (divided_stacks, own_experts, each_on_its_own, from_many_to_one)


def main() -> None:
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store = f"file://{folder}/experts.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("experts",))
    found = {task.__name__: task(mesh, names_of(sys.argv[4])) for task in TASKS}
    (folder / f"experts.{rank}.json").write_text(json.dumps(found))
    # A gloo thread that still holds a tensor when Python ends aborts the process.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
