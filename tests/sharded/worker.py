"""What the tests here run on each process: `worker.py FOLDER RANK RANKS few|all TASK...`.

A task returns what it found. With `few`, as in `make test`, it runs over the first options that lead to each rule of an
optimizer, or, where it is not about the rules, over one optimizer of each kind.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from time import process_time
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cases import Entry, Variant
from harness import assert_follows, feed, flattened, optimizer_of, parameters, set_lr, train, values
from tiers import DENSE, SIGNS_OF_ROUNDING, entries_of_each_kind, few_variants
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import hfoptim
from hfoptim.engine import MATRIX, TENSOR, rms, rule, scalar, zeros, zeros_without
from hfoptim.engine.distributed.dtensor import at_owner, cuts

# Parts of unequal sizes, an empty part, kernels, a stack; the scalar is replicated, FSDP2 does not take it.
NAMES = (
    *("matrix", "row", "column", "vector", "one", "conv", "wide", "stack", "scalar"),
    *("embed.weight", "mlp.weight", "mlp.bias", "norm.weight"),
)
TOLERANCE = 1e-9


def module_of(params: dict[str, nn.Parameter]) -> nn.Module:
    """A model that has these parameters."""
    model = nn.Module()
    for name, param in params.items():
        *path, last = name.split(".")
        owner = model
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(last, param)
    return model


def model_of(params: dict[str, nn.Parameter]) -> nn.Module:
    """A model with copies of these parameters."""
    return module_of({name: nn.Parameter(param.detach().clone()) for name, param in params.items()})


def sharded_model(mesh: DeviceMesh, names: tuple[str, ...] = NAMES, dtype: torch.dtype = torch.float64) -> nn.Module:
    model = model_of(parameters(names, dtype))
    alone = {p for p in model.parameters() if p.ndim == 0}
    fully_shard(model, mesh=mesh, ignored_params=alone)
    return model


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A plain tensor, sharded as another one is."""
    if not isinstance(model, DTensor):
        return tensor
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)


def here(tensor: Tensor) -> Tensor:
    """The part that lies on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def give(params: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    """The gradients of plain parameters, to sharded ones."""
    for name, param in params.items():
        grad = others[name].grad
        param.grad = None if grad is None else like(grad.clone(), param)


def parts(tensors: dict[str, Tensor], models: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts on this rank, as far as they have entries, of tensors that are sharded as others are."""
    found = {name: here(like(t.detach(), models[name])) for name, t in tensors.items()}
    return {name: part for name, part in found.items() if part.numel()}


def counted(function: Callable[[], Any]) -> dict[str, int]:
    with CommDebugMode() as mode:
        function()
    return {str(op).split(".")[-1]: n for op, n in mode.get_comm_counts().items() if n}


# Parts of every kind, and every kind of layer, once.
FEW_NAMES = ("matrix", "vector", "one", "conv", "scalar", "embed.weight", "mlp.weight")


def names_for(variant: Any, few: bool = False) -> tuple[str, ...]:
    names = FEW_NAMES if few else NAMES
    return (*names, "q_proj.weight") if "n_heads" in variant.options else names


def follow(entry: Any, variant: Any, model: nn.Module, steps: int, **options: Any) -> dict[str, int]:
    """Train `model` beside plain parameters; they must stay together, states included. The last step's collectives."""
    mine = dict(model.named_parameters())
    other = parameters(mine, torch.float64)
    ours = entry.cls(list(mine.items()), **variant.options, **options)
    theirs = entry.cls(list(other.items()), **variant.options, **options)
    ours.load_state_dict(ours.state_dict())  # as accelerate does when it prepares an optimizer
    start = values(parts(other, mine))
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    counts: dict[str, int] = {}
    for t in range(1, steps + 1):
        feed(other, t)
        give(mine, other)
        for optimizer in (ours, theirs):
            set_lr(optimizer, t, variant.lr)
        if t < steps:
            ours.step()
        else:
            counts = counted(ours.step)
        theirs.step()
        rows[0].append(flattened({name: here(mine[name].detach()) for name in start}))
        rows[1].append(flattened(parts(other, mine)))
    assert_follows(*rows, start, TOLERANCE)
    for name, param in mine.items():
        got, want = ours.state[param], theirs.state[other[name]]
        assert set(got) == set(want), (name, set(got), set(want))
        for key, value in want.items():
            assert got[key].shape == value.shape, (name, key)
            torch.testing.assert_close(here(got[key]), here(like(value, got[key])), rtol=1e-9, atol=1e-12)
        if at_owner(ours.rule_for(param, group_of(ours, param)), param):
            # Preconditioners, too: what one rank steps, no other has whole.
            assert all(cuts(value) for value in got.values() if value.ndim), name
    return counts


def group_of(optimizer: Any, param: Tensor) -> dict[str, Any]:
    return next(group for group in optimizer.param_groups if any(p is param for p in group["params"]))


# CPU-seconds of this process by optimizer, since the last task.
spent: defaultdict[str, float] = defaultdict(float)


@contextmanager
def counted_for(name: str) -> Iterator[None]:
    before = process_time()
    yield
    spent[name] += process_time() - before


def every_optimizer(folder: Path, few: bool) -> dict[str, Any]:
    """Every variant of every optimizer under FSDP2: the collectives of a step, and why some are refused."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    collectives, refused = {}, {}
    for entry in DENSE:
        for name in few_variants(entry) if few else entry.variants:
            key, variant = f"{entry.name}-{name}", entry.variants[name]
            with counted_for(entry.name):
                try:
                    steps = 3 if few else 10
                    collectives[key] = follow(entry, variant, sharded_model(mesh, names_for(variant, few)), steps)
                except (TypeError, ValueError) as error:
                    if "sharded parameter" not in str(error):
                        raise RuntimeError(key) from error
                    refused[key] = str(error)
                except Exception as error:
                    raise RuntimeError(key) from error
    return {"collectives": collectives, "refused": refused}


# -- checkpoints -----------------------------------------------------------------------------------------------------


def firsts(few: bool) -> list[tuple[str, Any, Any]]:
    """(name, entry, its first variant) of every optimizer that takes sharded parameters, or of one of each kind."""
    chosen = entries_of_each_kind() if few else DENSE
    return [(e.name, e, next(iter(e.variants.values()))) for e in chosen if not second_order(e)]


def second_order(entry: Any) -> bool:
    """Whether an optimizer says so where a parameter is sharded: its gradients need a graph."""
    return hfoptim.get_optimizer_info(entry.name).second_order


def set_values(params: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, param in params.items():
            here(param).copy_(here(like(others[name].detach(), param)))


def trained(entry: Any, variant: Any, few: bool, steps: int) -> tuple[Any, dict[str, nn.Parameter]]:
    """An optimizer of plain parameters after so many steps."""
    params = parameters(names_for(variant, few), torch.float64)
    optimizer = entry.cls(list(params.items()), **variant.options)
    train(optimizer, params, range(1, steps + 1), variant.lr)
    return optimizer, params


def go_on(variant: Any, ours: Any, model: nn.Module, theirs: Any, other: dict[str, Tensor], steps: range) -> None:
    """Both take these steps, from equal values, and stay together."""
    mine = dict(model.named_parameters())
    for t in steps:
        feed(other, t)
        give(mine, other)
        for optimizer in (ours, theirs):
            set_lr(optimizer, t, variant.lr)
            optimizer.step()
        got = {name: here(param.detach()) for name, param in mine.items()}
        for name, want in parts(other, mine).items():
            torch.testing.assert_close(got[name], want, rtol=TOLERANCE, atol=1e-12)


def fresh(entry: Any, variant: Any, mesh: DeviceMesh | None, other: dict[str, Tensor]) -> tuple[Any, nn.Module]:
    """An optimizer and a model, sharded over the mesh if there is one, with another's values."""
    names = tuple(other)
    model = model_of(parameters(names, torch.float64)) if mesh is None else sharded_model(mesh, names)
    set_values(dict(model.named_parameters()), other)
    return entry.cls(list(model.named_parameters()), **variant.options), model


def same_state(ours: Any, model: nn.Module, theirs: Any, other: dict[str, Tensor]) -> None:
    for name, param in model.named_parameters():
        got, want = ours.state[param], theirs.state[other[name]]
        assert set(got) == set(want), (name, set(got), set(want))
        for key, value in want.items():
            assert got[key].dtype == value.dtype, (name, key)
            torch.testing.assert_close(full(got[key]), value, rtol=1e-9, atol=1e-12)
        assert type(got["step"]) is Tensor
        assert got["step"].device.type == "cpu"
    for mine, yours in zip(ours.param_groups, theirs.param_groups, strict=True):
        for key, value in yours.items():
            if key != "params":
                assert type(mine[key]) is type(value), (key, mine[key], value)
                assert mine[key] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), key


def unless_numbers_only(optimizer: Any, options: StateDictOptions) -> AbstractContextManager[Any]:
    """Torch's own error where it should load whole tensors and an optimizer has none, as torch.optim.SGD has not."""
    sized = any(value.ndim for state in optimizer.state.values() for value in state.values())
    if sized or not options.full_state_dict:
        return nullcontext()
    return pytest.raises(AssertionError, match="Expected device to be set")


def no_state_of_torch(mesh: DeviceMesh) -> None:
    """Torch's functions do not load whole tensors into its own SGD without momentum: see `unless_numbers_only`."""
    options = StateDictOptions(full_state_dict=True)
    model = sharded_model(mesh, ("matrix",))
    optimizer = torch.optim.SGD(model.parameters())
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    with unless_numbers_only(optimizer, options):
        set_optimizer_state_dict(model, optimizer, saved, options=options)


def save(folder: Path, few: bool) -> list[str]:
    """Every optimizer after 3 steps on two ranks, in one checkpoint; and state_dicts of whole tensors."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    no_state_of_torch(mesh)
    everything = {}
    ways: list[dict[str, Any]] = [
        {"options": StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True)},
        {"options": StateDictOptions(full_state_dict=True)},
        {"options": StateDictOptions(flatten_optimizer_state_dict=True)},
    ]
    for place, (name, entry, variant) in enumerate(firsts(few)):
        theirs, other = trained(entry, variant, few, 0)
        ours, model = fresh(entry, variant, mesh, other)
        go_on(variant, ours, model, theirs, other, range(1, 4))
        same_state(ours, model, theirs, other)
        everything[name] = get_optimizer_state_dict(model, ours)
        # They are torch's: with `few`, one after the other.
        for whole in ways[place % 3 :][:1] if few else ways:
            saved = get_optimizer_state_dict(model, ours, **whole)
            again, copied = fresh(entry, variant, mesh, other)
            with unless_numbers_only(theirs, whole["options"]):
                set_optimizer_state_dict(copied, again, saved, **whole)
                same_state(again, copied, theirs, other)
        # Whole tensors that every rank has, and without torch's functions.
        for where in (None, mesh)[place % 2 :][:1] if few else (None, mesh):
            saved = get_optimizer_state_dict(model, ours, options=StateDictOptions(full_state_dict=True))
            again, copied = fresh(entry, variant, where, other)
            set_optimizer_state_dict(copied, again, saved)
            same_state(again, copied, theirs, other)
        again, copied = fresh(entry, variant, mesh, other)
        again.load_state_dict(copy.deepcopy(theirs.state_dict()))
        same_state(again, copied, theirs, other)
        last, copied = fresh(entry, variant, mesh, other)
        last.load_state_dict(copy.deepcopy(again.state_dict()))
        go_on(variant, last, copied, theirs, other, range(4, 6))
    dcp.save(everything, checkpoint_id=folder / "3")
    return list(everything)


def resume(folder: Path, few: bool, start: int, end: int) -> list[str]:
    """Load what `save` wrote after `start` steps, go on to `end` and save that."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    everything, resumed = {}, []
    for name, entry, variant in firsts(few):
        theirs, other = trained(entry, variant, few, start)
        ours, model = fresh(entry, variant, mesh, other)
        everything[name] = get_optimizer_state_dict(model, ours)
        for key, param in parts(other, dict(model.named_parameters())).items():
            assert torch.equal(here(model.get_parameter(key).detach()), param), f"making state moved {key}"
        assert all(float(state["step"]) == 0.0 for state in ours.state.values())
        resumed.append((variant, ours, model, theirs, other))
    dcp.load(everything, checkpoint_id=folder / str(start))
    for (variant, ours, model, theirs, other), (name, saved) in zip(resumed, everything.items(), strict=True):
        set_optimizer_state_dict(model, ours, saved)
        same_state(ours, model, theirs, other)
        go_on(variant, ours, model, theirs, other, range(start + 1, end + 1))
        everything[name] = get_optimizer_state_dict(model, ours)
    dcp.save(everything, checkpoint_id=folder / str(end))
    return list(everything)


def resume_on_one(folder: Path, few: bool) -> list[str]:
    return resume(folder, few, 3, 5)


def resume_on_two(folder: Path, few: bool) -> list[str]:
    return resume(folder, few, 5, 7)


# -- other ways to be divided ----------------------------------------------------------------------------------------


def distributed(names: tuple[str, ...], mesh: DeviceMesh, placements: Callable[[Tensor], list[Any]]) -> nn.Module:
    """A model whose parameters are divided as `placements` says."""
    model = model_of(parameters(names, torch.float64))
    for name, param in list(model.named_parameters()):
        owner = model.get_submodule(name.rpartition(".")[0])
        tensor = distribute_tensor(param.detach(), mesh, placements(param), src_data_rank=None)
        setattr(owner, name.rpartition(".")[2], nn.Parameter(tensor))
    return model


def by_columns(folder: Path, few: bool) -> dict[str, dict[str, int]]:
    """Parameters divided along their last dimension."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def placements(param: Tensor) -> list[Any]:
        return [Shard(param.ndim - 1) if param.ndim else Replicate()]

    chosen = firsts(few)
    # Its state begins with the lengths of rows, of which each rank has a part.
    chosen += [each for each in firsts(False) if each[0] == "muown" and each not in chosen]
    return {
        name: follow(entry, variant, distributed(names_for(variant, few), mesh, placements), 3)
        for name, entry, variant in chosen
    }


def meshes_of_two_dimensions(folder: Path, few: bool) -> dict[str, Any]:
    """Four ranks: replicas of shards (HSDP), two dimensions divided, FSDP2 over tensor-parallel shards."""
    hybrid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def placements(param: Tensor) -> list[Any]:
        return [Shard(0) if param.ndim else Replicate(), Shard(1) if param.ndim > 1 else Replicate()]

    found: dict[str, Any] = {}
    for name, entry, variant in firsts(few):
        names = names_for(variant)
        found[name] = [
            follow(entry, variant, sharded_model(hybrid, names), 3),
            follow(entry, variant, distributed(names, both, placements), 3),
        ]
        # FSDP2 divides the tensor-parallel shards once more, in the same dimension: only even ones.
        even = ("conv", "narrow")
        model = distributed(even, both["tensor"], lambda param: [Shard(0)])
        found[name].append(follow(entry, variant, fully_shard(model, mesh=both["data"]), 3))
    return found


# -- rules of every kind, precisions, gradients ----------------------------------------------------------------------


@rule(TENSOR, largest=scalar)
def reductions(grad: Any, param: Any, largest: Any, h: Any) -> tuple[Any, ...]:
    """Every reduction there is, over everything and over a dimension."""
    rows = (grad * grad).sum(-1, keepdim=True) + grad.amax(-1, True) - grad.mean(-1).unsqueeze(-1)
    ratio = param.norm() / (1.0 + grad.norm(dim=-1, keepdim=True)) + param.amin().abs()
    largest = torch.maximum(largest, grad.abs().amax())
    return grad / (1.0 + rows * rows) * ratio.clamp(max=2.0) + torch.where(grad > 0, rms(param), 0.1) / largest, largest


@rule(TENSOR, last=zeros)
def reversed_rows(grad: Any, param: Any, last: Any, h: Any) -> tuple[Any, ...]:
    """What cannot be done part by part."""
    return grad.flip(0) + last, grad


@rule(TENSOR, shape=lambda shape: (math.prod(shape) // shape[-1], shape[-1]), mean=zeros_without(-1))
def last_rows(grad: Any, param: Any, mean: Any, h: Any) -> tuple[Any, ...]:
    """In a shape that mixes the rows of what has more than two dimensions."""
    return grad - grad.mean(-1, keepdim=True), None


@rule(MATRIX, last=zeros)
def cubed(grad: Any, param: Any, last: Any, h: Any) -> tuple[Any, ...]:
    """Products of the last two dimensions."""
    return grad @ grad.mT @ grad + last, grad


def custom_rules(mesh: DeviceMesh) -> dict[str, dict[str, int]]:
    matrices = ("matrix", "row", "column", "wide", "stack")
    return {
        made.name: follow(
            Entry(made.name, optimizer_of(made), {}, [], {}),
            Variant({"weight_decay": 0.1}),
            sharded_model(mesh, names),
            4,
        )
        for made, names in (
            (reductions, matrices),
            (reversed_rows, ("matrix", "row", "vector", "conv")),
            (last_rows, matrices),
            (cubed, ("stack", "conv")),  # stacks of matrices, divided between them
        )
    }


def exactly(mesh: DeviceMesh, cls: Any, names: tuple[str, ...], dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Four steps give bit for bit what plain parameters get."""
    model = sharded_model(mesh, names, dtype)
    mine, other = dict(model.named_parameters()), parameters(names, dtype)
    ours, theirs = cls(list(mine.items()), **options), cls(list(other.items()), **options)
    for t in range(1, 5):
        feed(other, t)
        give(mine, other)
        ours.step()
        theirs.step()
    for name, param in mine.items():
        assert torch.equal(here(param.detach()), here(like(other[name].detach(), param))), (name, options)
        for key, value in theirs.state[other[name]].items():
            got = ours.state[param][key]
            assert torch.equal(here(got), here(like(value, got))), (name, key, options)


def precisions(mesh: DeviceMesh) -> int:
    """Compressed state, roundings, runners."""
    forms: list[dict[str, Any]] = [
        {"state_dtype": "8bit"},
        {"state_dtype": "4bit"},
        {"state_dtype": "8bit", "state_rounding": "stochastic"},
        {"state_dtype": "bfloat16"},
        {},
        {"foreach": False},
    ]
    roundings: list[dict[str, Any]] = [{}, {"stochastic_rounding": True}, {"master_weights": 16}, {"kahan_sum": False}]
    names = ("large", "conv_wide", "long", "row", "one")
    runs = [(torch.float32, form) for form in forms]
    runs += [(torch.bfloat16, {**forms[0], **rounding}) for rounding in roundings]
    for dtype, options in runs:
        exactly(mesh, hfoptim.AdamW, names, dtype, {"weight_decay": 0.1, **options})
    exactly(mesh, hfoptim.Muon, names, torch.bfloat16, {"state_dtype": "8bit"})
    for form in ("float32", "8bit", "4bit"):
        for wanted in ("float32", "8bit", "4bit"):
            changing_form(mesh, ("large", "long", "row"), form, wanted)
    return len(runs)


def changing_form(mesh: DeviceMesh, names: tuple[str, ...], form: str, wanted: str) -> None:
    """State kept in one form loads into another as it does on one process."""
    options = StateDictOptions(full_state_dict=True)
    found = []
    for make in (lambda: sharded_model(mesh, names, torch.float32), lambda: model_of(parameters(names))):
        first, second, plain = make(), make(), parameters(names)
        saving = hfoptim.AdamW(list(first.named_parameters()), state_dtype=form)
        loading = hfoptim.AdamW(list(second.named_parameters()), state_dtype=wanted)
        feed(plain, 1)
        give(dict(first.named_parameters()), plain)
        saving.step()
        saved = get_optimizer_state_dict(first, saving, options=options)
        set_optimizer_state_dict(second, loading, saved, options=options)
        assert loading.param_groups[0]["state_dtype"] == wanted
        found.append([loading.state[param] for param in second.parameters()])
    for ours, theirs in zip(*found, strict=True):
        assert set(ours) == set(theirs)
        for key, value in theirs.items():
            assert torch.equal(full(ours[key]), value), (form, wanted, key)


def several_meshes(mesh: DeviceMesh) -> dict[str, int]:
    """Sums over all parameters, of which some are divided in one way, some in another, and some not at all."""
    other = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("again",))
    ways = {
        "matrix": (mesh, Shard(0)),
        "wide": (other, Shard(1)),
        "row": (other, Shard(0)),
        "column": (mesh, Replicate()),
        "vector": (other, Replicate()),
    }
    model = model_of(parameters((*ways, "conv", "scalar"), torch.float64))
    for name, (where, way) in ways.items():
        tensor = distribute_tensor(model.get_parameter(name).detach(), where, [way], src_data_rank=None)
        setattr(model, name, nn.Parameter(tensor))
    clip = Variant({"global_clipnorm": 0.5})
    return follow(Entry("clip", hfoptim.AdamWeightDecay, {}, [], {}), clip, model, 4)


def partial_gradients(mesh: DeviceMesh) -> None:
    """Gradients that every rank has a part of the sum of, as of replicated parameters in tensor parallelism."""
    for way in (Replicate(), Shard(0)):
        param = nn.Parameter(distribute_tensor(torch.ones(5, 3), mesh, [way], src_data_rank=None))
        plain = nn.Parameter(torch.ones(5, 3))
        plain.grad = torch.arange(15.0).view(5, 3) - 7.0
        param.grad = DTensor.from_local(plain.grad / mesh.size(), mesh, [Partial()])
        for p in (param, plain):
            hfoptim.SGD([p], lr=0.1).step()
        torch.testing.assert_close(full(param.detach()), plain.detach())


def curvature(mesh: DeviceMesh) -> None:
    """Tensor parallelism gives gradients with a graph: Hessians are those of one process; FSDP2's are refused."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    batches = torch.randn(4, 2, 7, 6, dtype=torch.float64)

    def trained(cls: Any, model: nn.Module, micro: bool, **options: Any) -> list[Tensor]:
        optimizer = cls(list(model.named_parameters()), lr=0.05, **options)
        for batch in batches:
            optimizer.zero_grad()
            for x in batch if micro else (batch.flatten(0, 1),):
                (model(x) ** 2).mean().backward(create_graph=True)
                if micro:
                    optimizer.add_curvature()
            optimizer.step()
        return [full(param.detach()) for param in model.parameters()]

    for micro in (False, True):
        for cls, options in (
            (hfoptim.Adahessian, {"n_samples": 2}),
            (hfoptim.SophiaH, {"p": 1.0, "update_period": 2}),
        ):
            ways = {"0": ColwiseParallel(), "2": RowwiseParallel()}
            model = parallelize_module(copy.deepcopy(start), mesh, ways)
            both = zip(
                trained(cls, model, micro, **options), trained(cls, copy.deepcopy(start), micro, **options), strict=True
            )
            for got, wanted in both:
                torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    with pytest.raises(TypeError, match="has no graph; FSDP2 makes none"):
        trained(hfoptim.Adahessian, fully_shard(copy.deepcopy(start), mesh=mesh), False)


def making_state(mesh: DeviceMesh) -> None:
    """What torch's functions do to an optimizer that has no state yet: nothing but make it."""
    for make in (
        lambda params: hfoptim.Adafactor(params, weight_decay=0.5),
        lambda params: hfoptim.AdamWeightDecay(params, lambda t: 0.1 / (t + 1), weight_decay_rate=0.5),
        lambda params: hfoptim.Prodigy(params, weight_decay=0.5),
        lambda params: hfoptim.AdamWScheduleFree(params, weight_decay=0.5, warmup_steps=3),
        lambda params: hfoptim.Adam(params, weight_decay=0.5),
    ):
        model = sharded_model(mesh, ("matrix", "row", "scalar"))
        optimizer = make(list(model.named_parameters()))
        before = copy.deepcopy([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups])
        start = {name: here(param.detach()).clone() for name, param in model.named_parameters()}
        saved = get_optimizer_state_dict(model, optimizer)
        assert set(saved["state"]) == set(start)
        assert all(float(state["step"]) == 0.0 for state in saved["state"].values())
        assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == before
        for name, param in model.named_parameters():
            assert torch.equal(here(param.detach()), start[name]), name
        # A first step at lr 0 with gradients is a step: on every rank, though one of them has zeros only.
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        here(model.get_parameter("matrix").grad)[0].fill_(1.0 - dist.get_rank())
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
        if not isinstance(optimizer, hfoptim.Prodigy):  # in which nothing happens at lr 0
            assert all(float(state["step"]) == 1.0 for state in optimizer.state.values()), type(optimizer)


def changed_gradients(mesh: DeviceMesh) -> None:
    """Means and norms of rows and of tensors, divided in either way, are those of one process."""
    ways = {"gradient_centralization": True, "adaptive_clip": 0.05, "orthograd": True, "hyperball": True}
    named = [(hfoptim.SGD, {"momentum": 0.9, "weight_decay": 0.1}), (hfoptim.Lamb, {}), (hfoptim.Muon, {})]
    for cls, options in named:
        for dim in (0, -1):
            whole = [nn.Parameter(param) for param in parameters(("vector", "matrix", "conv"), torch.float64).values()]
            divided: list[Any] = [
                nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(dim % p.ndim)])) for p in whole
            ]
            one, many = (
                cls([(f"layers.{i}.weight", p) for i, p in enumerate(params)], lr=1e-2, **options, **ways)
                for params in (whole, divided)
            )
            for t in range(3):
                g = torch.Generator().manual_seed(t)
                for mine, other in zip(whole, divided, strict=True):
                    mine.grad = torch.randn(mine.shape, generator=g, dtype=torch.float64)
                    other.grad = distribute_tensor(mine.grad, mesh, other.placements)
                one.step()
                many.step()
            for mine, other in zip(whole, divided, strict=True):
                torch.testing.assert_close(full(other.detach()), mine.detach(), rtol=TOLERANCE, atol=1e-12)


def sums_of_changed_gradients(mesh: DeviceMesh) -> dict[str, dict[str, int]]:
    """Sums over all tensors are of gradients that norms of whole tensors have clipped, or divided."""
    cases = {"adai": {"adaptive_clip": 0.3}, "ranger21_base": {"adaptive_clip": 0.3, "weight_decay": 0.5}}
    found = {}
    for entry in DENSE:
        if entry.name in cases:
            variant = Variant(cases[entry.name], alone=False)
            found[entry.name] = follow(entry, variant, sharded_model(mesh, ("vector", "matrix", "conv")), 3)
    return found


def kinds(folder: Path, few: bool) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    partial_gradients(mesh)
    curvature(mesh)
    making_state(mesh)
    changed_gradients(mesh)
    return {
        "rules": custom_rules(mesh),
        "several_meshes": several_meshes(mesh),
        "precisions": precisions(mesh),
        "sums_of_changed": sums_of_changed_gradients(mesh),
    }


# -- training --------------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).double()


def train_network(model: nn.Module, optimizer: Any, ranks: int, rank: int, variant: Any) -> None:
    """Steps on this rank's share of each batch."""
    tokens = torch.randint(7, (5, 8), generator=torch.Generator().manual_seed(1))
    targets = torch.randint(3, (5, 8), generator=torch.Generator().manual_seed(2))
    for t, (x, y) in enumerate(zip(tokens, targets, strict=True), start=1):
        set_lr(optimizer, t, variant.lr)
        optimizer.zero_grad()
        share = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
        nn.functional.cross_entropy(model(x[share]), y[share]).backward()
        optimizer.step()


def training(folder: Path, few: bool) -> list[str]:
    """FSDP2, layer by layer, and DDP: real gradients on half a batch for each rank, against one process."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh("cpu", (ranks,))
    followed = [each for each in firsts(few) if each[0] not in SIGNS_OF_ROUNDING]
    for name, entry, variant in followed:
        options = {**variant.options, "dim": 6, "n_heads": 1} if "n_heads" in variant.options else variant.options
        alone, layered, copied = network(), network(), network()
        for layer in layered.children():
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        fully_shard(layered, mesh=mesh)
        replicated = nn.parallel.DistributedDataParallel(copied)
        for model, parts_of in ((alone, (1, 0)), (layered, (ranks, rank)), (replicated, (ranks, rank))):
            optimizer = entry.cls([(n.removeprefix("module."), p) for n, p in model.named_parameters()], **options)
            assert not optimizer.state
            train_network(model, optimizer, *parts_of, variant)
            for param in model.parameters():
                # Numbers, such as the count of steps, are all that some have.
                sized = [t for t in optimizer.state[param].values() if t.ndim]
                divided = isinstance(param, DTensor) and len(sized) > 0
                assert divided == any(isinstance(t, DTensor) for t in sized), name
        for key, want in alone.named_parameters():
            for got in (full(layered.get_parameter(key).detach()), copied.get_parameter(key).detach()):
                torch.testing.assert_close(got, want.detach(), rtol=TOLERANCE, atol=1e-11, msg=f"{name} {key}")
        weight = copied.get_parameter("1.weight").detach()
        everywhere = [torch.empty_like(weight) for _ in range(ranks)]
        dist.all_gather(everywhere, weight)
        assert all(torch.equal(each, everywhere[0]) for each in everywhere), name
    return [name for name, _, _ in followed]


TASKS = {
    f.__name__: f
    for f in (
        every_optimizer,
        save,
        resume_on_one,
        resume_on_two,
        by_columns,
        meshes_of_two_dimensions,
        kinds,
        training,
    )
}


def main() -> None:
    folder, rank, ranks, tasks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[5:]
    few = sys.argv[4] == "few"
    store = f"file://{folder}/{'-'.join(tasks)}.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=120))
    for task in tasks:
        spent.clear()
        found = {"found": TASKS[task](folder, few), "cpu_seconds": spent}
        (folder / f"{task}.{rank}.json").write_text(json.dumps(found))
    # A gloo thread that still holds a tensor when Python ends aborts the process.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
