"""What test_sharded_wrappers.py runs on each process: `sharded_worker.py FOLDER RANK`. Wrappers over DTensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from harness import assert_follows, feed, flattened, parameters, values
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.optim import Optimizer

import hfoptim
from hfoptim import (
    EMA,
    GPA,
    GSAM,
    SAM,
    SVRG,
    TRAC,
    WSAM,
    EMANesterov,
    FriendlySAM,
    GrokFast,
    Lookahead,
    LookSAM,
    Magma,
    Mechanic,
    ScheduleFree,
)
from hfoptim.engine import RuleOptimizer

# Parts of unequal sizes and an empty one; the scalar is on both processes.
NAMES = ("matrix", "vector", "one", "conv", "scalar")
Params = dict[str, Any]
BASES: dict[str, Callable[[Any], Optimizer]] = {
    "torch": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "hfoptim": lambda params: hfoptim.AdamW(params, lr=1e-2, weight_decay=0.1),
}


def sharded(params: Params, mesh: DeviceMesh) -> Params:
    def divide(tensor: Tensor) -> DTensor:
        return distribute_tensor(tensor.detach().clone(), mesh, [Shard(0) if tensor.ndim else Replicate()])

    return {name: nn.Parameter(divide(param)) for name, param in params.items()}


def feed_parts(parts: Params, whole: Params, t: int) -> None:
    """The gradients of `whole`, divided as the parameters are."""
    feed(whole, t)
    for name, param in parts.items():
        param.grad = distribute_tensor(whole[name].grad.clone(), param.device_mesh, param.placements)


def together(params: Params) -> Tensor:
    return flattened({name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in params.items()})


def beside(make: Callable[[list[Any]], Any], step: Callable[..., None], mesh: DeviceMesh) -> None:
    """Sharded and whole runs stay together, also after the sharded one has loaded a checkpoint of the other."""
    whole = parameters(NAMES, torch.float64)
    parts = sharded(whole, mesh)
    start = values(whole)
    ours, theirs = make(list(parts.values())), make(list(whole.values()))
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for t in range(1, 9):
        step(ours, theirs, parts, whole, t)
        if t == 4:
            # torch's loader does not divide a whole checkpoint.
            saved = (theirs if isinstance(ours.optimizer, RuleOptimizer) else ours).state_dict()
            ours = make(list(parts.values()))
            ours.load_state_dict(saved)
        rows[0].append(together(parts))
        rows[1].append(together(whole))
    assert_follows(*rows, start, 1e-10)
    for kind, kept in ours.kept.items():
        if kind in ("magma_alignment", "grokfast_gradients"):  # a number for each, and many tensors
            continue
        for param, tensor in kept.items():
            assert isinstance(tensor, DTensor)
            assert tensor.placements == param.placements
            assert tensor.to_local().shape == param.to_local().shape


def lookahead_step(ours: Any, theirs: Any, parts: Params, whole: Params, t: int) -> None:
    feed_parts(parts, whole, t)
    ours.step()
    theirs.step()


def sam_step(ours: Any, theirs: Any, parts: Params, whole: Params, t: int) -> None:
    feed_parts(parts, whole, 2 * t)
    with CommDebugMode() as traffic:
        ours.first_step()
    assert traffic.get_total_counts() <= 1, traffic.get_comm_counts()
    theirs.first_step()
    difference = (together(parts) - together(whole)).abs().max()
    assert difference < 1e-12, difference
    feed_parts(parts, whole, 2 * t + 1)
    ours.second_step()
    theirs.second_step()


def svrg_step(ours: Any, theirs: Any, parts: Params, whole: Params, t: int) -> None:
    if t % 3 == 1:
        ours.snapshot(lambda: feed_parts(parts, whole, 100 + t))
        theirs.snapshot(lambda: feed_parts(parts, whole, 100 + t))
    feed_parts(parts, whole, 2 * t)
    for optimizer in (ours, theirs):
        optimizer.first_step()
    feed_parts(parts, whole, 2 * t + 1)
    with CommDebugMode() as traffic:
        ours.second_step()
    assert traffic.get_total_counts() == 0, traffic.get_comm_counts()
    theirs.second_step()


def tuned_step(ours: Any, theirs: Any, parts: Params, whole: Params, t: int) -> None:
    feed_parts(parts, whole, t)
    with CommDebugMode() as traffic:
        ours.step()
    assert traffic.get_total_counts() <= 1, traffic.get_comm_counts()
    theirs.step()


def averaged_beside(base: Any, mesh: DeviceMesh) -> None:
    """The average of sharded parameters is that of whole ones, and so is what `eval()` puts into them."""

    def step(ours: Any, theirs: Any, parts: Params, whole: Params, t: int) -> None:
        lookahead_step(ours, theirs, parts, whole, t)
        for optimizer in (ours, theirs):
            optimizer.eval()
        difference = (together(parts) - together(whole)).abs().max()
        assert difference < 1e-12, difference
        for optimizer in (ours, theirs):
            optimizer.train()

    beside(base, step, mesh)


def pulling(base: Any, params: Any) -> Lookahead:
    return Lookahead(base(params), k=2, pullback_momentum="pullback")


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for base in BASES.values():
        beside(lambda params, base=base: Lookahead(base(params), k=3), lookahead_step, mesh)  # type: ignore[misc]
        beside(lambda params, base=base: pulling(base, params), lookahead_step, mesh)  # type: ignore[misc]
        averaged_beside(lambda params, base=base: EMA(base(params), decay=0.5), mesh)  # type: ignore[misc]
        averaged_beside(lambda params, base=base: EMANesterov(base(params), 2.0, 0.8), mesh)  # type: ignore[misc]
        beside(lambda params, base=base: Magma(base(params)), lookahead_step, mesh)  # type: ignore[misc]
        beside(lambda params, base=base: GrokFast(base(params)), lookahead_step, mesh)  # type: ignore[misc]
        beside(
            lambda params, base=base: GrokFast(base(params), filter_type="mean", window_size=3),  # type: ignore[misc]
            lookahead_step,
            mesh,
        )
        for averaging in (ScheduleFree, GPA):
            averaged_beside(lambda params, base=base, of=averaging: of(base(params)), mesh)  # type: ignore[misc]
        for tuned in (Mechanic, TRAC):
            beside(lambda params, base=base, of=tuned: of(base(params), s_init=0.1), tuned_step, mesh)  # type: ignore[misc]
        for on in (False, True):
            beside(lambda params, base=base, on=on: SAM(None, base(params), adaptive=on), sam_step, mesh)  # type: ignore[misc]
    base = next(iter(BASES.values()))
    for cls, options in ((GSAM, {}), (WSAM, {}), (LookSAM, {"looksam_k": 2}), (FriendlySAM, {})):
        beside(lambda params, cls=cls, options=options: cls(None, base(params), **options), sam_step, mesh)  # type: ignore[misc]
    beside(lambda params: SVRG(base(params), snapshots=5), svrg_step, mesh)
    dist.destroy_process_group()
    (folder / f"done-{rank}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
