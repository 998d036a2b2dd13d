"""One column of the table of distributed_table.py, on one of its processes: `distributed_column.py JOB RANK RANKS`.

JOB is a file of JSON: the column, the names, the folder for what is found and for checkpoints. Every rank sees the
whole batch, so that averages of gradients are exact, and what is left of a difference is the optimizer's.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import hfoptim
from hfoptim.engine import RuleOptimizer, modes, unwrap_all
from hfoptim.engine.parameter_names import bare
from hfoptim.registry import option_defaults

STEPS, HALF = 6, 3
ZERO = {"zero1": 1, "zero2": 2, "zero3": 3}
# How far a run may be from that of one process, as a share of how far that has moved.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-6}
VOCABULARY, WIDTH, HIDDEN, CLASSES = 12, 8, 10, 5

Change = Callable[[int], None]
Gradients = list[dict[str, Tensor]]


class Network(nn.Module):
    """Matrices, vectors, a kernel: sides that two ranks divide and four do not."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH, sparse=sparse)
        if not sparse:
            self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
            self.up = nn.Linear(WIDTH, HIDDEN)
            self.norm = nn.LayerNorm(HIDDEN)
            self.down = nn.Linear(HIDDEN, WIDTH)
            self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if not hasattr(self, "conv"):
            return x[..., :CLASSES]
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x + self.down(self.norm(torch.tanh(self.up(x)))))


def network(dtype: torch.dtype, sparse: bool) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network(sparse).to(dtype)


def batches() -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    shape = (6, 4)
    return [
        (torch.randint(VOCABULARY, shape, generator=random), torch.randint(CLASSES, (24,), generator=random))
        for _ in range(STEPS)
    ]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    tokens, labels = batch
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), labels)


def make(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer by its name, on two groups: with weight decay, where it takes any, and without."""
    named = [(bare(key), param) for key, param in model.named_parameters()]
    without = [pair for pair in named if pair[0].endswith("bias") or "norm" in pair[0]]
    decayed = [pair for pair in named if all(pair[0] != key for key, _ in without)]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": without}]
    if name == "lbfgs":
        groups = [{"params": named}]  # it takes one
    elif "weight_decay" in option_defaults(name):
        groups = [{**group, "weight_decay": decay} for group, decay in zip(groups, (0.01, 0.0), strict=True)]
    return hfoptim.create_optimizer_v2([group for group in groups if group["params"]], name)


def take_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, needs: Any, change: Change | None = None
) -> None:
    """Train for these steps; `change` is called with each one's number, once the gradients are there."""
    if modes.has_two(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    for step, batch in zip(steps, batches()[steps.start : steps.stop], strict=True):
        closure = partial(_closure, model, optimizer, batch, needs.second_order)
        if needs.needs_closure:
            optimizer.step(closure)
            continue
        loss = closure()
        if change is not None:
            change(step)
        for inner in unwrap_all(optimizer, RuleOptimizer):
            inner.add_loss(loss.detach())
        optimizer.step()


def _closure(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, graph: bool) -> Tensor:
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    loss.backward(create_graph=graph)
    return loss


def weights(model: nn.Module) -> dict[str, Tensor]:
    """All of each parameter, by its plain name."""
    found = {}
    for name, param in model.named_parameters():
        whole = param.full_tensor() if isinstance(param, DTensor) else param
        found[bare(name)] = whole.detach().clone()
    return found


def distance(got: dict[str, Tensor], want: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, float]:
    """How far the weights are from those wanted, as a share of the largest movement of all.

    Of entries that are too far by that, also how many roundings they are off: of the dtype's relative spacing times
    the entry. A weight of 1 that moves by 0.05 in float32 has one at 2e-6 of the movement.
    """
    assert got.keys() == want.keys(), (sorted(got), sorted(want))
    moved = max(float((want[name] - start[name]).abs().max()) for name in want)
    away = {name: (got[name].reshape(want[name].shape) - want[name]).abs() for name in want}
    farthest = max(float(each.max()) for each in away.values())
    share = farthest / moved if moved else float(farthest > 0.0)
    least = {name: TOLERANCES[each.dtype] * moved for name, each in want.items()}
    roundings = [
        float((each / (torch.finfo(each.dtype).eps * want[name].abs()))[each > least[name]].max())
        for name, each in away.items()
        if bool((each > least[name]).any())
    ]
    return {"distance": share, "roundings": max(roundings)} if roundings else {"distance": share}


def precision(name: str) -> torch.dtype:
    """What a name is trained in: double precision, which 8-bit state does not go with."""
    return torch.float32 if option_defaults(name).get("state_dtype") in ("8bit", "4bit") else torch.float64


def switch(optimizer: Any, mode: str) -> None:
    if modes.has_two(optimizer):
        getattr(optimizer, mode)()


def alone(
    name: str, dtype: torch.dtype, needs: Any, noted: Gradients | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights at the start, and after the steps on one process; those to evaluate, where there are others.

    The gradients of the steps are put into `noted`.
    """
    model = network(dtype, needs.sparse_only)
    start = weights(model)
    optimizer = make(name, model)

    def note(step: int) -> None:
        assert noted is not None
        noted.append({key: param.grad.clone() for key, param in model.named_parameters() if param.grad is not None})

    take_steps(model, optimizer, range(STEPS), needs, None if noted is None else note)
    switch(optimizer, "eval")
    return start, weights(model)


# -- columns ----------------------------------------------------------------------------------------------------------


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


@cache
def mesh_of(*names: str) -> DeviceMesh:
    """All ranks, or two rows of them; kept, as every group of ranks that gloo makes has threads of its own."""
    shape = (dist.get_world_size(),) if len(names) == 1 else (2, dist.get_world_size() // 2)
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def fsdp2(model: nn.Module) -> nn.Module:
    fully_shard(model, mesh=mesh_of("shards"))
    return model


def hsdp(model: nn.Module) -> nn.Module:
    fully_shard(model, mesh=mesh_of("replicas", "shards"))
    return model


def tensor_parallel(model: nn.Module) -> nn.Module:
    mesh = mesh_of("data", "tensor")
    # By columns and by rows, evenly and not; DTensors end where a layer does.
    ways = {"up": ColwiseParallel(output_layouts=Replicate()), "down": RowwiseParallel(input_layouts=Replicate())}
    parallelize_module(model, mesh["tensor"], {**ways, "head": ColwiseParallel(output_layouts=Replicate())})
    fully_shard(model, mesh=mesh["data"])
    return model


def give(model: nn.Module, noted: Gradients, step: int) -> None:
    """The gradients of one process in the place of those that sharded parameters have, of which they are all but."""
    param: Any
    for key, param in model.named_parameters():
        grad = noted[step][key]
        assert isinstance(param.grad, DTensor)
        near = torch.finfo(grad.dtype).eps ** 0.5
        torch.testing.assert_close(param.grad.full_tensor(), grad, rtol=near, atol=near * float(grad.abs().max()))
        param.grad = distribute_tensor(grad, param.device_mesh, param.placements, src_data_rank=None)


SHARDINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp2": ddp,
    "fsdp2_2": fsdp2,
    "fsdp2_4": fsdp2,
    "hsdp": hsdp,
    "tp_fsdp2": tensor_parallel,
}


def by_torch(name: str, needs: Any, column: str) -> dict[str, Any]:
    """Divided by torch, as the column says, in double precision."""
    # Rows of a matrix on two ranks are added up in another order, and a basis of what is all but zero is any basis: so
    # that it is the optimizers that are compared, gradients are those of one process there.
    noted: Gradients | None = [] if column == "tp_fsdp2" and not needs.second_order else None
    start, want = alone(name, precision(name), needs, noted)
    model = SHARDINGS[column](network(precision(name), needs.sparse_only))
    optimizer = make(name, model)
    take_steps(model, optimizer, range(STEPS), needs, None if noted is None else partial(give, model, noted))
    switch(optimizer, "eval")
    return distance(weights(model), want, start)


def fsdp1(name: str, needs: Any, column: str) -> dict[str, Any]:
    """FullyShardedDataParallel, its parameters under their own names."""
    start, want = alone(name, precision(name), needs)
    model = FullyShardedDataParallel(
        network(precision(name), needs.sparse_only), use_orig_params=True, device_id=torch.device("cpu")
    )
    optimizer = make(name, model)
    take_steps(model, optimizer, range(STEPS), needs)
    switch(optimizer, "eval")
    with FullyShardedDataParallel.summon_full_params(model):
        got = weights(model)
    return distance(got, want, start)


def zero(name: str, needs: Any, column: str) -> dict[str, Any]:
    """DeepSpeed, in float32."""
    import deepspeed

    start, want = alone(name, torch.float32, needs)
    model = network(torch.float32, needs.sparse_only)
    optimizer = make(name, model)
    config = {
        "train_micro_batch_size_per_gpu": 6,
        "zero_optimization": {"stage": ZERO[column], "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    try:
        if needs.needs_closure or needs.second_order:
            # DeepSpeed takes neither a closure nor a graph: what the optimizer says to its plain step.
            engine.backward(loss_of(engine, batches()[0]))
            engine.step()
            raise AssertionError(f"{name} needs more than a gradient, and took a step without")
        switch(optimizer, "train")
        for batch in batches():
            loss = loss_of(engine, batch)
            for inner in unwrap_all(optimizer, RuleOptimizer):
                inner.add_loss(loss.detach())
            engine.backward(loss)
            engine.step()
        switch(optimizer, "eval")
        got = {}
        for key, param in model.named_parameters():
            # One by one: of several, DeepSpeed 0.19 waits for the last alone, and gloo may finish it first.
            with deepspeed.zero.GatheredParameters([param], enabled=ZERO[column] == 3):
                got[bare(key)] = param.detach().clone()
    finally:
        engine.destroy()
    return distance(got, want, start)


def save(name: str, needs: Any, column: str) -> dict[str, Any]:
    """Half of the steps, and a checkpoint."""
    model: nn.Module = network(precision(name), needs.sparse_only)
    model = fsdp2(model) if dist.get_world_size() > 1 else model
    optimizer = make(name, model)
    take_steps(model, optimizer, range(HALF), needs)
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(state, checkpoint_id=FOLDER / column / name)
    return {"saved": True}


def resume(name: str, needs: Any, column: str) -> dict[str, Any]:
    """The other half, on another number of processes."""
    start, want = alone(name, precision(name), needs)
    model: nn.Module = network(precision(name), needs.sparse_only)
    model = fsdp2(model) if dist.get_world_size() > 1 else model
    optimizer = make(name, model)
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=FOLDER / column / name)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    take_steps(model, optimizer, range(HALF, STEPS), needs)
    switch(optimizer, "eval")
    return distance(weights(model), want, start)


FOLDER = Path()


def look(kind: str, column: str, name: str) -> dict[str, Any]:
    """What there is in one cell: the distance, or the sentence of the refusal."""
    needs = hfoptim.get_optimizer_info(name)
    how = {"save": save, "resume": resume}.get(kind) or (
        zero if column in ZERO else {"fsdp1": fsdp1}.get(column, by_torch)
    )
    torch.manual_seed(2)
    try:
        return how(name, needs, column)
    except (TypeError, ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        return {"error": type(error).__name__, "said": str(error), "where": _where(error)}


def _where(error: BaseException) -> str:
    """The innermost place that the error is from, of hfoptim or not."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    package = str(Path(hfoptim.__file__).parent)
    return "hfoptim" if frames and frames[-1].startswith(package) else f"{Path(frames[-1]).name}"


def every(kind: str, column: str, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in names:
        found = look(kind, column, name)
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, found)
        if any(other != everywhere[0] for other in everywhere):
            found = {"error": "ranks disagree", "said": json.dumps(everywhere), "where": ""}
        yield name, found
        gc.collect(0)


def main() -> None:
    global FOLDER
    job, rank, ranks = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    FOLDER = Path(job["folder"])
    store = f"file://{job['store']}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=90))
    if job["column"] in ZERO:
        os.environ.update(
            {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu"}
        )
        import deepspeed

        # Minutes of compiling; gloo does as well. As an attribute of its package it is not to be had.
        vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    found = {}
    for name, cell in every(job["kind"], job["column"], job["names"]):
        found[name] = cell
        if rank == 0:
            print(name, cell, flush=True)
    if rank == 0:
        Path(job["output"]).write_text(json.dumps(found))
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        main()
