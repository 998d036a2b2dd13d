"""What test_run_state.py runs on each of two processes: `run_state_worker.py STORE RANK`."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from harness import feed, parameters
from of_loss_and_distance import AliG, DoG
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from hfoptim.engine.distributed.dtensor import whole_of


def sharded() -> None:
    """A distance over sharded tensors is that of whole ones, on every rank."""
    names = ("matrix", "vector", "conv")
    whole = parameters(names, torch.float64)
    mesh = init_device_mesh("cpu", (2,))
    parts = {n: nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for n, p in whole.items()}
    one, two = DoG(list(whole.values())), DoG(list(parts.values()))
    for t in range(1, 9):
        feed(whole, t)
        for name, param in parts.items():
            param.grad = distribute_tensor(whole[name].grad, mesh, [Shard(0)])
        one.step()
        two.step()
        for name in ("distance", "grad_sum"):
            ours, theirs = two.param_groups[0][name], one.param_groups[0][name]
            assert abs(ours - theirs) <= 1e-12 * theirs, (t, name, ours, theirs)
    for name, param in parts.items():
        torch.testing.assert_close(whole_of(param.detach()), whole[name].detach(), rtol=1e-12, atol=1e-14)
    assert one.param_groups[0]["distance"] > 1.1e-3 * 4


def ddp(rank: int) -> None:
    """A step from the mean of the ranks' losses is that from the loss of the whole batch."""

    def model() -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(4, 3, dtype=torch.float64)

    alone, wrapped = model(), DistributedDataParallel(model())
    one, two = AliG(alone.parameters(), lr=10.0), AliG(wrapped.parameters(), lr=10.0)
    for t in range(5):
        batch = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(t)) * (t + 1)
        losses = []
        for module, optimizer, part in ((alone, one, batch), (wrapped, two, batch[rank * 4 : rank * 4 + 4])):
            optimizer.zero_grad()
            loss = (module(part) - part[:, :3].cos()).square().mean()
            loss.backward()
            optimizer.step(loss=loss)
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) > 1e-3  # the rank's own would not do
    for ours, theirs in zip(wrapped.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    average = torch.tensor([two.param_groups[0]["average"]], dtype=torch.float64)
    both = [torch.zeros_like(average) for _ in range(2)]
    dist.all_gather(both, average)
    assert both[0] == both[1]
    assert abs(both[0].item() - one.param_groups[0]["average"]) < 1e-12


if __name__ == "__main__":
    store, rank = sys.argv[1], int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    sharded()
    ddp(rank)
    print("sharded ddp")
    dist.barrier()
    dist.destroy_process_group()
