"""What test_segmented.py runs on each of two processes: `flat_worker.py FOLDER`.

Parameters are laid out as DeepSpeed does it, by hand, so that DeepSpeed need not be there: what it keeps about them is
all that is read. tests/providers has the real one.
"""

from __future__ import annotations

import sys
from collections import Counter
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import hfoptim
from hfoptim.engine.distributed import segmented

STEPS = 4
SHAPES = [[(3, 5), (4, 2, 3)], [(7,), (), (1, 1)]]


def parameters(dtype: torch.dtype = torch.float64) -> list[list[nn.Parameter]]:
    random = torch.Generator().manual_seed(1)
    return [[nn.Parameter(torch.randn(shape, generator=random, dtype=dtype)) for shape in group] for group in SHAPES]


def gradients(step: int, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    random = torch.Generator().manual_seed(10 + step)
    return [[torch.randn(shape, generator=random, dtype=dtype) for shape in group] for group in SHAPES]


def make(name: str, params: list[list[nn.Parameter]], **options: Any) -> Any:
    decays = (0.1, 0.0)
    names = (("block.0.weight", "block.1.kernel"), ("block.0.bias", "block.0.scale", "block.1.gain"))
    groups = [
        {"params": list(zip(own, group, strict=True)), "weight_decay": decay}
        for own, group, decay in zip(names, params, decays, strict=True)
    ]
    return hfoptim.create_optimizer_v2(groups, name, lr=0.05, **options)


class Flat:
    """The parameters of an optimizer laid out as by ZeRO-1, in one vector a group, or by ZeRO-3, each by itself."""

    def __init__(self, optimizer: Any, params: list[list[nn.Parameter]], stage: int, parts: int = 1) -> None:
        self.optimizer, self.stage, self.given = optimizer, stage, params
        # As the optimizer has divided them.
        self.params: list[list[Any]] = [list(group["params"]) for group in optimizer.param_groups]
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.flats: list[list[Tensor]] = []
        self.wholes: list[Tensor] = []
        for group in self.params:
            self.flats.append(self._one_vector(group) if stage == 1 else self._by_parameter(group, parts))
        for flats, group in zip(self.flats, optimizer.param_groups, strict=True):
            group["params"] = flats if stage == 1 else []

    def _one_vector(self, group: list[nn.Parameter]) -> list[Tensor]:
        size = -(-sum(param.numel() for param in group) // (2 * self.ranks)) * 2 * self.ranks
        whole, at = torch.zeros(size, dtype=group[0].dtype), 0
        for param in group:
            whole[at : at + param.numel()] = param.detach().view(-1)
            param.data = whole[at : at + param.numel()].view(param.shape)
            at += param.numel()
            param._hp_mapping = None  # type: ignore[attr-defined]
            param._dp_group = dist.group.WORLD  # type: ignore[attr-defined]
        self.wholes.append(whole)
        share = size // self.ranks
        return [whole[self.rank * share : (self.rank + 1) * share].clone()]

    def _by_parameter(self, group: list[Any], parts: int) -> list[Tensor]:
        for param in group:
            share = -(-param.numel() // self.ranks)
            padded = torch.zeros(share * self.ranks, dtype=param.dtype)
            padded[: param.numel()] = param.detach().view(-1)
            param.ds_shape, param.ds_numel, param.ds_process_group = param.shape, param.numel(), dist.group.WORLD
            param.ds_tensor = padded[self.rank * share : (self.rank + 1) * share].clone()
            param.ds_tensor.ds_numel = share
        cut = -(-len(group) // parts)
        return [torch.cat([p.ds_tensor for p in group[at : at + cut]]) for at in range(0, len(group), cut)]

    def _mine(self, group: list[Tensor], flat: Tensor, members: list[Any]) -> Tensor:
        """This rank's part of the gradients."""
        if self.stage == 1:
            whole = torch.zeros(flat.numel() * self.ranks, dtype=flat.dtype)
            filled = torch.cat([grad.reshape(-1) for grad in group])
            whole[: filled.numel()] = filled
            return whole[self.rank * flat.numel() :][: flat.numel()].clone()
        parts = []
        for grad, param in zip(group, members, strict=True):
            share = param.ds_tensor.numel()
            padded = torch.zeros(share * self.ranks, dtype=flat.dtype)
            padded[: grad.numel()] = grad.reshape(-1)
            parts.append(padded[self.rank * share : (self.rank + 1) * share])
        return torch.cat(parts)

    def step(self, grads: list[list[Tensor]]) -> None:
        """Step one flat tensor after the other, and bring the model up to date as DeepSpeed does."""
        groups = self.optimizer.param_groups
        of = {id(p): g for ps, gs in zip(self.given, grads, strict=True) for p, g in zip(ps, gs, strict=True)}
        for index, (flats, members) in enumerate(zip(self.flats, self.params, strict=True)):
            own = [of[id(param)] for param in members]
            cut = -(-len(members) // len(flats))
            for place, flat in enumerate(flats):
                few = slice(place * cut, (place + 1) * cut)
                flat.grad = self._mine(own[few] if self.stage == 3 else own, flat, members[few])
                if self.stage == 1:
                    self.optimizer.param_groups = [groups[index]]
                else:
                    groups[index]["params"] = [flat]
                self.optimizer.step()
                self.optimizer.param_groups = groups
                flat.grad = None
                if self.stage == 3:
                    groups[index]["params"] = []
                self._into_model(index, flat, members[few])
        for whole in self.wholes:
            share = whole.numel() // self.ranks
            dist.all_gather_into_tensor(whole, whole[self.rank * share :][:share].clone())

    def _into_model(self, index: int, flat: Tensor, members: list[Any]) -> None:
        if self.stage == 1:
            self.wholes[index][self.rank * flat.numel() :][: flat.numel()] = flat
            return
        for param, part in zip(members, flat.split([param.ds_tensor.numel() for param in members]), strict=True):
            param.ds_tensor.copy_(part)

    def weights(self) -> list[Tensor]:
        found = []
        for param in (param for group in self.given for param in group):
            if self.stage == 1:
                found.append(param.detach().clone())
                continue
            mine: Any = param
            whole = torch.empty(mine.ds_tensor.numel() * self.ranks, dtype=param.dtype)
            dist.all_gather_into_tensor(whole, mine.ds_tensor)
            found.append(whole[: param.numel()].view(param.shape))
        return found


def alone(name: str, switched: bool = False, **options: Any) -> list[Tensor]:
    params = parameters()
    optimizer = make(name, params, **options)
    for step in range(STEPS):
        for group, grads in zip(params, gradients(step), strict=True):
            for param, grad in zip(group, grads, strict=True):
                param.grad = grad
        optimizer.step()
    if switched:
        optimizer.eval()
    return [param.detach() for group in params for param in group]


def flat(name: str, stage: int, parts: int = 1, **options: Any) -> tuple[Any, Flat]:
    params = parameters()
    optimizer = make(name, params, **options)
    return optimizer, Flat(optimizer, params, stage, parts)


def distance(name: str, stage: int, parts: int = 1, **options: Any) -> float:
    """How far weights are from those of one process; those to evaluate where there are others."""
    optimizer, own = flat(name, stage, parts, **options)
    switched = hasattr(optimizer, "eval")
    for step in range(STEPS):
        own.step(gradients(step))
    if switched:
        optimizer.eval()
    want = alone(name, switched, **options)
    return max(float((a - b).abs().max()) for a, b in zip(own.weights(), want, strict=True))


def resumed(name: str, stage: int) -> float:
    """The same, of a run that was saved in the middle."""
    first, own = flat(name, stage)
    for step in range(STEPS // 2):
        own.step(gradients(step))
    saved, kept = first.state_dict(), [[part.clone() for part in flats] for flats in own.flats]
    second, other = flat(name, stage)
    # DeepSpeed loads the optimizer before the weights, with the flat parts in its groups.
    for group, flats in zip(second.param_groups, other.flats, strict=True):
        group["params"] = flats
    second.load_state_dict(saved)
    for index, group in enumerate(second.param_groups):
        group["params"] = other.flats[index] if stage == 1 else []
        for part, value in zip(other.flats[index], kept[index], strict=True):
            part.copy_(value)
            other._into_model(index, part, other.params[index])
    for step in range(STEPS // 2, STEPS):
        other.step(gradients(step))
    return max(float((a - b).abs().max()) for a, b in zip(other.weights(), alone(name), strict=True))


COUNTED = ("all_reduce", "all_to_all_single", "all_gather_object")


def collectives(name: str) -> dict[str, int]:
    """What the third step communicates."""
    _, own = flat(name, 1)
    for step in range(2):
        own.step(gradients(step))
    counts: Counter[str] = Counter()
    before = {kind: getattr(dist, kind) for kind in COUNTED}

    def counting(kind: str, *args: Any, **kwargs: Any) -> Any:
        counts[kind] += 1
        return before[kind](*args, **kwargs)

    for kind in COUNTED:
        setattr(dist, kind, partial(counting, kind))
    own.step(gradients(2))
    for kind, function in before.items():
        setattr(dist, kind, function)
    return dict(counts)


def kinds(name: str, **options: Any) -> list[str]:
    optimizer, own = flat(name, 1, **options)
    own.step(gradients(0))
    return [member.kind.name for row in optimizer._segmented._rows for member in row]


def said(function: Any) -> str:
    try:
        function()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def of_other_ranks() -> None:
    optimizer, own = flat("lamb", 1)
    own.step(gradients(0))
    saved = optimizer.state_dict()
    saved["flattened"]["ranks"] = 3
    optimizer.load_state_dict(saved)


def of_whole_parameters() -> None:
    params = parameters()
    whole = make("lamb", params)
    for group in params:
        for param in group:
            param.grad = torch.ones_like(param)
    whole.step()
    optimizer, own = flat("lamb", 1)
    own.step(gradients(0))
    optimizer.load_state_dict(whole.state_dict())


def into_whole_parameters() -> None:
    optimizer, own = flat("lamb", 1)
    own.step(gradients(0))
    make("lamb", parameters()).load_state_dict(optimizer.state_dict())


def failing() -> None:
    """A rule that fails on the rank that has something to do, in the first step."""
    optimizer, own = flat("muon", 1)
    if dist.get_rank() == 1:
        optimizer._collect = lambda *_: (_ for _ in ()).throw(ValueError("no memory"))
    own.step(gradients(0))


def elsewhere() -> None:
    """Weights that are not where the records say, of the last group: those before are copied into the model first."""
    _, own = flat("lamb", 1)
    if dist.get_rank() == 0:
        own.flats[-1][0][0] += 1.0
    own.step(gradients(0))


def twice() -> None:
    optimizer, own = flat("lamb", 1)
    groups = optimizer.param_groups
    optimizer.param_groups = groups[:1]
    own.flats[0][0].grad = torch.ones_like(own.flats[0][0])
    own.flats[1][0].grad = torch.ones_like(own.flats[1][0])
    optimizer.step()
    optimizer.step()


def offloaded() -> None:
    _, own = flat("lamb", 1)
    if dist.get_rank() == 0:
        own.params[0][0]._hp_mapping = SimpleNamespace(use_offload=True)  # type: ignore[attr-defined]
    own.step(gradients(0))


def watched() -> None:
    optimizer, own = flat("lamb", 1)
    optimizer.report = object()
    own.step(gradients(0))


def changed() -> None:
    optimizer, own = flat("muon", 1)
    own.step(gradients(0))
    optimizer.param_groups[1]["adaptive_clip"] = 0.1
    own.step(gradients(1))


REFUSALS = (
    of_other_ranks,
    of_whole_parameters,
    into_whole_parameters,
    failing,
    elsewhere,
    twice,
    offloaded,
    watched,
    changed,
)
NAMES = ["lamb", "lars", "cadamw", "muon", "soap", "adafactor", "adam_mini", "prodigy", "adamw_schedule_free", "adai"]


def main() -> None:
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # By its name alone it is known who has flattened them.
    sys.modules["deepspeed"] = ModuleType("deepspeed")
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    assert segmented.KEY == "flattened"
    found: dict[str, Any] = {
        "distances": {
            (name, stage, parts): distance(name, stage, parts)
            for name in NAMES
            for stage, parts in ((1, 1), (3, 1), (3, 2))
        },
        "options": {
            "caution": distance("adamw", 1, caution=True),
            "orthograd": distance("adamw", 1, orthograd=True),
            "centralization": distance("adamw", 1, gradient_centralization=True),
            "clipped": distance("lamb", 1, max_grad_norm=0.1),
        },
        "resumed": {(name, stage): resumed(name, stage) for name in ("lamb", "muon", "prodigy") for stage in (1, 3)},
        "collectives": {name: collectives(name) for name in ("lamb", "muon", "prodigy", "cadamw")},
        "kinds": {name: kinds(name) for name in ("lamb", "muon", "adafactor", "cadamw")},
        "said": {function.__name__: said(function) for function in REFUSALS},
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
