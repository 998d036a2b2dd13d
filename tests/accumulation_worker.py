"""What test_accumulation_processes.py runs on each process: `accumulation_worker.py (ddp|accelerate) FOLDER`."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist
from ragged import ragged_batch, tokens_in
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import profile

from hfoptim.training.accumulator import GradientAccumulator

# Lengths of the sequences of each micro-batch: WINDOWS[window][rank][micro-batch][sequence]. Token counts differ
# between ranks; one micro-batch has no token; in the last window one process has no micro-batch at all.
WINDOWS = [
    [[[7, 2], [1, 1], [5, 6]], [[1, 1], [2, 1], [1, 3]]],
    [[[3, 7], [0, 0], [6, 5]], [[7, 7], [4, 3]]],
    [[[4, 1]], []],
]


class Model(nn.Module):
    """A tiny language model with a part that only process 0 uses and one that none uses."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11)
        self.only_first = nn.Parameter(torch.full((8,), 0.1))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, tokens: Tensor, first: bool) -> Tensor:
        hidden = self.hidden(self.embedding(tokens)).tanh()
        return self.head(hidden * (1 + self.only_first) if first else hidden)


def loss_of(model: nn.Module, tokens: Tensor, labels: Tensor, first: bool) -> Tensor:
    """Sum of the token losses."""
    logits = model(tokens, first)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


def batches(window: int, rank: int) -> list[tuple[Tensor, Tensor]]:
    return [ragged_batch(lengths, seed=100 * window + 10 * rank + i) for i, lengths in enumerate(WINDOWS[window][rank])]


@contextlib.contextmanager
def counting_all_reduces() -> Iterator[list[int]]:
    """Counts the all-reduces of this process, those inside DDP included."""
    counts: list[int] = []
    with profile() as profiler:
        yield counts
    counts.append(sum(event.name == "c10d::allreduce_" for event in profiler.events()))


def raises(error: type[Exception], message: str, function: object, *args: object, **kwargs: object) -> None:
    caught = None
    try:
        function(*args, **kwargs)  # type: ignore[operator]
    except error as exception:
        caught = str(exception)
    assert caught is not None, f"{message!r} was not raised"
    assert message in caught, caught


def train(model: nn.Module, no_sync: object, rank: int) -> tuple[float, list[int]]:
    """Three windows against one process with all the data. Returns the largest difference and the all-reduces."""
    reference = Model().double()
    reference.load_state_dict({k.removeprefix("module."): v.clone() for k, v in model.state_dict().items()})
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.3, momentum=0.9) for m in (model, reference)]
    accumulator = GradientAccumulator(model)
    worst, counts = 0.0, []
    for window in range(len(WINDOWS)):
        with counting_all_reduces() as counted:
            for tokens, labels in batches(window, rank):
                count = torch.tensor(tokens_in(labels))
                with no_sync(accumulator, model):  # type: ignore[operator]
                    (loss_of(model, tokens, labels, first=rank == 0) / count).backward()  # NaN where count is 0
                accumulator(weight=count)
            accumulator.apply_to()
        counts.append(counted[0])

        optimizers[1].zero_grad()
        everything = [(r, *data) for r in range(2) for data in batches(window, r)]
        total = sum(tokens_in(labels) for _, _, labels in everything)
        sum(loss_of(reference, tokens, labels, first=r == 0) for r, tokens, labels in everything).div(total).backward()
        for (name, got), want in zip(model.named_parameters(), reference.parameters(), strict=True):
            assert (got.grad is None) == (want.grad is None) == name.endswith("unused"), name
            if got.grad is not None and want.grad is not None:
                worst = max(worst, ((got.grad - want.grad).abs().max() / want.grad.abs().max()).item())
        for optimizer in optimizers:
            optimizer.step()
        accumulator.reset()
        assert all(p.grad is None for p in model.parameters())
    return worst, counts


def check_edges(rank: int) -> list[str]:
    """What is refused, and the corners of the reduction."""
    checked = []
    model = DistributedDataParallel(Model().double(), find_unused_parameters=True)
    accumulator = GradientAccumulator(model)
    tokens, labels = ragged_batch([7], seed=0)
    loss_of(model, tokens, labels, first=True).backward()
    raises(RuntimeError, "already averaged", accumulator)
    assert accumulator.step == 0
    assert model.module.hidden.weight.grad is not None
    model.zero_grad()
    with accumulator.no_sync():
        loss_of(model, tokens, labels, first=True).backward()
        accumulator()
    checked.append("reduced twice")

    raises(ValueError, "drift apart", GradientAccumulator, model, sync=False)
    param = nn.Parameter(torch.zeros(2))
    undecided = GradientAccumulator([param])
    param.grad = torch.ones(2)
    undecided()
    raises(RuntimeError, "There are 2 processes", undecided.apply_to)
    assert param.grad is None
    checked.append("sync undecided")
    local = GradientAccumulator(sync=False)
    local([torch.full((2,), float(rank))])
    with counting_all_reduces() as counted:
        local.apply_to([param])
    assert counted == [0]
    assert param.grad.tolist() == [rank, rank]
    checked.append("sync=False")

    # Two dtypes (bf16 adds up with float32, complex as pairs), a transposed layout: one all-reduce per dtype.
    params = [
        nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)),
        nn.Parameter(torch.zeros(2, 3).t()),
        nn.Parameter(torch.zeros(2, dtype=torch.float64)),
        nn.Parameter(torch.zeros(2, dtype=torch.complex64)),
        nn.Parameter(torch.zeros(())),
    ]
    values = [torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(params)]
    mixed = GradientAccumulator(sync=True)
    scale = rank + 1.0  # of the gradient; as weight 3 - scale: (1 * 2 + 2 * 1) / 3
    pairs = list(zip(values, params, strict=True))
    mixed([scale * (v + 1j if p.is_complex() else v).to(p.dtype) for v, p in pairs], weight=3 - scale)
    with counting_all_reduces() as counted:
        mixed.apply_to(params)
    assert counted == [2], counted
    for p, v in zip(params, values, strict=True):
        expected = (1.0 * 2 + 2.0 * 1) / 3 * (v + 1j if p.is_complex() else v).to(p.dtype)
        torch.testing.assert_close(p.grad, expected)
        assert p.grad.stride() == p.stride()
    checked.append("mixed dtypes")

    # No process has a micro-batch, or none has a token.
    mixed.reset()
    assert mixed.apply_to(params) == []
    assert all(p.grad is None for p in params)
    mixed.reset()
    if rank == 1:
        mixed([None, *(torch.full_like(p, float("nan")) for p in params[1:])], weight=0)
    assert len(mixed.apply_to(params)) == 4
    assert params[0].grad is None
    assert all(not p.grad.any() for p in params[1:])
    checked.append("nothing anywhere")

    summed = GradientAccumulator(reduction="sum", sync=True)
    if rank == 0:  # the other process never called its accumulator and knows no names
        summed([torch.ones(2)], weight=2)
        summed([torch.ones(2)], weight=3)
    target = [nn.Parameter(torch.zeros(2))]
    assert summed.apply_to(target) == target
    assert target[0].grad.tolist() == [5.0, 5.0]
    checked.append("sum")

    from torch.distributed.tensor import DeviceMesh, DTensor, Shard, distribute_tensor

    mesh = DeviceMesh("cpu", [0, 1])
    sharded = nn.Parameter(distribute_tensor(torch.zeros(4, 2), mesh, [Shard(0)]))
    accumulator = GradientAccumulator([sharded], sync=False)
    for value in (1.0, 3.0):
        sharded.grad = distribute_tensor(torch.full((4, 2), value), mesh, [Shard(0)])
        accumulator()
    accumulator.apply_to()
    assert isinstance(sharded.grad, DTensor)
    assert sharded.grad.full_tensor().unique().tolist() == [2.0]
    reducing = GradientAccumulator([sharded], sync=True)
    raises(ValueError, "DTensor", reducing)
    raises(ValueError, "DTensor", GradientAccumulator(sync=False), [sharded.grad], weight=2)
    checked.append("DTensor")
    return checked


def measure(mode: str) -> dict[str, object]:
    torch.manual_seed(0)
    if mode == "accelerate":
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        model = accelerator.prepare(Model().double())

        def no_sync(accumulator: GradientAccumulator, model: nn.Module) -> AbstractContextManager[None]:
            return accelerator.no_sync(model)
    else:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(Model().double())

        def no_sync(accumulator: GradientAccumulator, model: nn.Module) -> AbstractContextManager[None]:
            return accumulator.no_sync()

    assert isinstance(model, DistributedDataParallel)
    rank = dist.get_rank()
    worst, counts = train(model, no_sync, rank)
    checked = check_edges(rank) if mode == "ddp" else []

    plain = DistributedDataParallel(nn.Linear(2, 2))
    with counting_all_reduces() as plain_counts:
        plain(torch.ones(1, 2)).sum().backward()
    return {
        "windows": len(counts),
        "worst_difference": worst,
        "all_reduces_per_window": counts,
        "all_reduces_of_a_plain_backward": plain_counts[0],
        "parameters": torch.cat([p.detach().flatten() for p in model.parameters()]).tolist(),
        "checked": checked,
    }


def main() -> None:
    mode, folder = sys.argv[1], Path(sys.argv[2])
    report = measure(mode)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(report))
    # A gloo thread that still holds a tensor when Python ends aborts the process, and a living DDP module keeps the
    # threads alive through destroy_process_group.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
