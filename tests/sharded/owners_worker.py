"""What test_distribute_matrices.py runs on each process: `owners_worker.py FOLDER RANK few|all TASK...`."""

from __future__ import annotations

import copy
import gc
import json
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cases import ENTRIES
from harness import feed, parameters, set_lr
from tiers import few_variants
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from worker import model_of, module_of

import hfoptim
from hfoptim.engine import RuleOptimizer
from hfoptim.engine.backends import MATRIX
from hfoptim.engine.distributed import owners as owners_module
from hfoptim.engine.distributed import sharded
from hfoptim.engine.rule import Scope

# Matrices of one shape and of others, kernels, a stack; a vector and a scalar, which every rank steps.
NAMES = ("matrix", "column", "conv", "channels_last", "wide", "narrow", "stack", "vector", "scalar", "mlp.weight")


def made(
    entry: Any, variant: Any, names: tuple[str, ...] = NAMES, **options: Any
) -> tuple[Any, dict[str, nn.Parameter]]:
    names = (*names, "q_proj.weight") if "n_heads" in variant.options else names
    params = parameters(names, torch.float64)
    return entry.cls(list(params.items()), **variant.options, **options), params


def matrices(optimizer: Any) -> list[Tensor]:
    """Those that a rule of whole matrices steps."""
    return [
        param
        for group in optimizer.param_groups
        for param in group["params"]
        if optimizer.rule_for(param, group).scope is Scope.MATRIX
    ]


def taken(few: bool) -> Iterator[tuple[str, Any, Any]]:
    """(name, entry, variant) of every optimizer with such a rule; with `few` one of each of its rules."""
    for entry in ENTRIES:
        if not issubclass(entry.cls, RuleOptimizer):
            continue
        for name in few_variants(entry) if few else entry.variants:
            variant = entry.variants[name]
            optimizer, _ = made(entry, variant)
            if matrices(optimizer):
                yield f"{entry.name}-{name}", entry, variant


def steps_of(pairs: list[tuple[Any, dict[str, nn.Parameter]]], variant: Any, steps: range) -> None:
    for t in steps:
        for optimizer, params in pairs:
            feed(params, t)
            set_lr(optimizer, t, variant.lr)
            optimizer.step()


def distance(mine: dict[str, nn.Parameter], other: dict[str, nn.Parameter]) -> float:
    """The largest difference of entries."""
    return max(float((mine[name] - param).detach().abs().max()) for name, param in other.items())


def same_state(found: dict[str, Any], wanted: dict[str, Any], key: str) -> None:
    assert found["state"].keys() == wanted["state"].keys(), key
    for index, state in wanted["state"].items():
        assert found["state"][index].keys() == state.keys(), (key, index)
        for name, value in state.items():
            torch.testing.assert_close(found["state"][index][name], value, rtol=1e-9, atol=1e-12)


def steps(folder: Path, few: bool) -> dict[str, Any]:
    """Every optimizer beside one that steps all by itself: distances, collectives of a step, what each rank keeps."""
    found = {}
    for key, entry, variant in taken(few):
        ours, mine = made(entry, variant, distribute_matrices=True)
        theirs, other = made(entry, variant)
        steps_of([(ours, mine), (theirs, other)], variant, range(1, 5))
        feed(mine, 5)
        feed(other, 5)
        with CommDebugMode() as mode:
            ours.step()
        theirs.step()
        divided = {id(param) for param in matrices(ours)}
        kept = [len(ours.state[param]) > 1 for param in mine.values() if id(param) in divided]
        without = [p for p in matrices(theirs) if len(theirs.state[p]) == 1]
        found[key] = {
            "distance": distance(mine, other),
            "collectives": {str(op).split(".")[-1]: n for op, n in mode.get_comm_counts().items() if n},
            "matrices": len(divided),
            "kept": sum(kept),
            "stateless": len(without) == len(divided),
            "weights": [float(param.detach().double().sum()) for param in mine.values()],
        }
        same_state(ours.state_dict(), theirs.state_dict(), key)
        gc.collect()
    return found


def memory(folder: Path, few: bool) -> dict[str, Any]:
    """Bytes of state on this rank, and of an optimizer that keeps all, for eight matrices of a size."""
    found = {}
    for name in ("muon", "soap", "distributed_shampoo", "kron", "adamuon"):
        sizes = []
        for divided in (True, False):
            generator = torch.Generator().manual_seed(0)
            params = [(f"layers.{i}.weight", nn.Parameter(torch.randn(24, 24, generator=generator))) for i in range(8)]
            optimizer = hfoptim.get_optimizer_class(name)(params, lr=1e-3, distribute_matrices=divided)
            for _, param in params:
                param.grad = torch.ones_like(param)
            optimizer.step()
            sizes.append(
                sum(t.numel() * t.element_size() for s in optimizer.state.values() for k, t in s.items() if k != "step")
            )
        found[name] = sizes
    return found


def checkpoints(folder: Path, few: bool) -> list[str]:
    """Saved and loaded: from ranks that divide to one that does not, back, and through torch's checkpoints."""
    seen = []
    for key, entry, variant in taken(True):
        theirs, other = made(entry, variant)
        ours, mine = made(entry, variant, distribute_matrices=True)
        steps_of([(ours, mine), (theirs, other)], variant, range(1, 3))
        saved, alone = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
        ways: dict[str, Callable[[Any, dict[str, nn.Parameter]], None]] = {
            "whole": partial(load_copy, saved),
            "of one": partial(load_copy, alone),
            "dcp": partial(through_dcp, folder / key, ours, mine),
        }
        for how, load in ways.items():
            for divided in (True, False):
                again, copied = made(entry, variant, distribute_matrices=divided)
                with torch.no_grad():
                    for name, param in copied.items():
                        param.copy_(other[name])
                load(again, copied)
                model, beside = made(entry, variant)
                with torch.no_grad():
                    for name, param in beside.items():
                        param.copy_(other[name])
                model.load_state_dict(copy.deepcopy(alone))
                steps_of([(again, copied), (model, beside)], variant, range(3, 5))
                assert distance(copied, beside) <= 1e-12, (key, how, divided, distance(copied, beside))
        with ours.gathered_state():
            if dist.get_rank() == 0:
                same_state(ours.state_dict(), theirs.state_dict(), key)
        seen.append(key)
    return seen


def load_copy(saved: dict[str, Any], optimizer: Any, params: dict[str, nn.Parameter]) -> None:
    optimizer.load_state_dict(copy.deepcopy(saved))


def through_dcp(
    folder: Path, saved: Any, mine: dict[str, nn.Parameter], loading: Any, params: dict[str, nn.Parameter]
) -> None:
    dcp.save(get_optimizer_state_dict(module_of(mine), saved), checkpoint_id=folder)
    state = get_optimizer_state_dict(module_of(params), loading)
    dcp.load(state, checkpoint_id=folder)
    set_optimizer_state_dict(module_of(params), loading, state)


def faults(folder: Path, few: bool) -> dict[str, str]:
    """What goes wrong on one rank: the same decision on all of them, and none waits for ever."""
    rank, said = dist.get_rank(), {}

    def muon(count: int = 4) -> tuple[Any, list[nn.Parameter]]:
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(6, 5, generator=generator)) for _ in range(count)]
        named = [(f"layers.{i}.weight", param) for i, param in enumerate(params)]
        for param in params:
            param.grad = torch.ones_like(param)
        return hfoptim.Muon(named, lr=0.1, distribute_matrices=True), params

    def note(name: str, run: Callable[[], Any]) -> None:
        try:
            run()
            said[name] = "nothing"
        except RuntimeError as error:
            said[name] = str(error)

    optimizer, params = muon()
    if rank == 0:
        params[0].grad = params[1].grad = None
    note("a missing gradient", optimizer.step)
    assert {len(optimizer.state[p]) for p in optimizer.owners().owner} <= {0, 1, 2}
    everything = [[torch.empty_like(p) for _ in range(dist.get_world_size())] for p in params]
    for param, copies in zip(params, everything, strict=True):
        dist.all_gather(copies, param.detach())
        assert all(torch.equal(copies[0], each) for each in copies)

    optimizer, params = muon()
    if rank == 0:
        for param in params:
            param.grad = None
    note("no gradients", optimizer.step)

    optimizer, params = muon(4 + rank)
    note("other parameters", optimizer.step)

    optimizer, params = muon()
    if rank == 1:

        def fails(bucket: Any) -> None:
            raise ArithmeticError("a decomposition failed")

        MATRIX.step = fails  # type: ignore[method-assign]
    try:
        note("an error", optimizer.step)
    except ArithmeticError as error:
        said["an error"] = str(error)
    if rank == 1:
        del MATRIX.step

    optimizer, params = muon()
    optimizer.step()
    for group in optimizer.param_groups:
        group["distribute_matrices"] = False
    note("switched off", optimizer.step)

    optimizer, params = muon()
    optimizer.step()
    usual, owners_module.MEETING = owners_module.MEETING, timedelta(seconds=2)
    if rank == 0:
        note("alone", optimizer.state_dict)
    owners_module.MEETING = usual
    # The others go on: theirs is another group.
    dist.barrier()
    optimizer.step()
    # And whoever was alone meets them later.
    assert all(optimizer.state_dict()["state"].values())
    return said


def modes(folder: Path, few: bool) -> float:
    """Weights for evaluation that are the owners' state reach the other ranks."""
    pairs = []
    for divided in (True, False):
        params = parameters(NAMES, torch.float64)
        pairs.append((hfoptim.SPlus(list(params.items()), lr=0.01, ema_rate=0.9, distribute_matrices=divided), params))
    (ours, mine), (theirs, other) = pairs
    far = 0.0
    for t in range(1, 4):
        for optimizer, params in pairs:
            feed(params, t)
            optimizer.step()
            optimizer.eval()
        far = max(far, distance(mine, other))
        same_state(ours.state_dict(), theirs.state_dict(), "splus")
        for optimizer, _ in pairs:
            optimizer.train()
        far = max(far, distance(mine, other))
    return far


def wrapped(folder: Path, few: bool) -> dict[str, float]:
    """Wrappers that look at weights alone go around one that divides its matrices."""
    far = {}
    for name in ("lookahead_muon", "ema_muon", "schedule_free_soap", "grokfast_muon"):
        pairs = []
        for divided in (True, False):
            params = parameters(NAMES, torch.float64)
            cls = hfoptim.get_optimizer_class(name)
            pairs.append((cls(list(params.items()), lr=0.01, distribute_matrices=divided), params))
        (ours, mine), (theirs, other) = pairs
        for t in range(1, 8):
            for optimizer, params in pairs:
                feed(params, t)
                optimizer.step()
        same_state(ours.state_dict(), theirs.state_dict(), name)
        for optimizer, _ in pairs:
            if hasattr(optimizer, "eval"):
                optimizer.eval()
        far[name] = distance(mine, other)
    return far


def trainer(folder: Path, few: bool) -> dict[str, Any]:
    """A Trainer under DDP by name: the weights of one that does not divide, its checkpoint, and going on from it."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    import hfoptim.trainer as integration

    integration.enable()
    data = [{"input_ids": (ids := torch.arange(8).add(i).remainder(16)), "labels": ids} for i in range(32)]

    def train(name: str, divided: bool, resume: str | None = None) -> tuple[Any, nn.Module]:
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**SMALL))
        args = TrainingArguments(
            *(str(folder / name),),
            optim="hfoptim_muon",
            optim_args=f"distribute_matrices={divided}",
            learning_rate=1e-2,
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            ddp_backend="gloo",
        )
        made = Trainer(model, args, train_dataset=data)
        made.train(resume_from_checkpoint=resume)
        return made, model

    def far(one: nn.Module, other: nn.Module) -> float:
        return max(
            float((p - q).detach().abs().max()) for p, q in zip(one.parameters(), other.parameters(), strict=True)
        )

    divided, mine = train("divided", True)
    _, other = train("alone", False)
    _, again = train("divided-again", True, str(folder / "divided" / "checkpoint-2"))
    _, changed = train("changed", False, str(folder / "divided" / "checkpoint-2"))
    saved = [
        torch.load(folder / name / "checkpoint-2" / "optimizer.pt", weights_only=True) for name in ("divided", "alone")
    ]
    same_state(*saved, "trainer")
    inner = hfoptim.engine.unwrap(divided.optimizer, RuleOptimizer)
    return {
        "far": far(mine, other),
        "resumed": far(mine, again),
        "changed": far(mine, changed),
        "elsewhere": len(inner.owners().elsewhere),
        "matrices": len(inner.owners().owner),
    }


def batches(folder: Path, few: bool) -> dict[str, Any]:
    """FSDP2 with matrices in many batches, which are on their way at once: as on one process."""
    sharded.BATCH = 64
    found: dict[str, Any] = {}
    for name in ("muon", "soap"):
        cls = hfoptim.get_optimizer_class(name)
        generator = torch.Generator().manual_seed(0)
        shapes = [(12, 8), (5, 7), (8, 8), (3, 9), (12, 8), (7, 5)]
        weights = {
            f"layers_{i}": nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
            for i, shape in enumerate(shapes)
        }
        model = model_of(weights)
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        ours = cls(list(model.named_parameters()), lr=0.05)
        theirs = cls(list(weights.items()), lr=0.05)
        counts: dict[str, int] = {}
        for _ in range(4):
            for key, param in model.named_parameters():
                grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
                weights[key].grad = grad
                assert isinstance(param, DTensor)
                param.grad = distribute_tensor(grad, param.device_mesh, param.placements, src_data_rank=None)
            theirs.step()
            with CommDebugMode() as mode:
                ours.step()
            counts = {str(op).split(".")[-1]: n for op, n in mode.get_comm_counts().items() if n}
        far = max(
            float((p.full_tensor() - weights[key]).detach().abs().max())  # type: ignore[attr-defined]
            for key, p in model.named_parameters()
        )
        found[name] = {"far": far, "collectives": counts}
    return found


def rounds(folder: Path, few: bool) -> dict[str, Any]:
    """Matrices in many rounds, and broadcasts where one is far larger than the others: as on one process."""
    owners_module.ROUND = 32
    pairs = []
    for divided in (True, False):
        params = parameters((*NAMES, "large"), torch.float64)
        pairs.append((hfoptim.Muon(list(params.items()), lr=0.1, distribute_matrices=divided), params))
    for t in range(1, 4):
        for optimizer, params in pairs:
            feed(params, t)
            if optimizer is pairs[0][0]:
                with CommDebugMode() as mode:
                    optimizer.step()
            else:
                optimizer.step()
    counts = {str(op).split(".")[-1]: n for op, n in mode.get_comm_counts().items() if n}
    return {"far": distance(pairs[0][1], pairs[1][1]), "collectives": counts}


def groups(folder: Path, few: bool) -> float:
    """Two halves of the ranks, each with weights of its own, divide them among themselves."""
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    half = dist.get_rank() // 2
    pairs = []
    for divided in (True, False):
        params = parameters(NAMES, torch.float64)
        with torch.no_grad():
            for param in params.values():
                param.mul_(1.0 + half)
        optimizer = hfoptim.Muon(list(params.items()), lr=0.1, distribute_matrices=divided)
        optimizer.process_group = halves[half]
        pairs.append((optimizer, params))
    for t in range(1, 4):
        for optimizer, params in pairs:
            feed(params, t)
            optimizer.step()
    same_state(pairs[0][0].state_dict(), pairs[1][0].state_dict(), "halves")
    return distance(pairs[0][1], pairs[1][1])


SMALL: dict[str, Any] = {"vocab_size": 16, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
SMALL |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

TASKS: dict[str, Callable[[Path, bool], Any]] = {
    task.__name__: task
    for task in (steps, memory, checkpoints, faults, modes, wrapped, trainer, batches, rounds, groups)
}


def main(folder: Path, rank: int, few: bool, tasks: list[str]) -> None:
    torch.set_num_threads(1)
    if tasks != ["trainer"]:
        dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    for task in tasks:
        (folder / f"{task}.{rank}.json").write_text(json.dumps(TASKS[task](folder, few)))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "few", sys.argv[4:])
