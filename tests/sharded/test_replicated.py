"""DTensors that are whole on every rank: their states begin as those of plain parameters, and steps are the same."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

import hfoptim


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.kind
@pytest.mark.parametrize("name", ["muown", "muon", "soap", "came", "lamb", "sara", "adamw"])
def test_steps_are_those_of_plain_parameters(mesh, name):
    generator = torch.Generator().manual_seed(0)
    start, *grads = (torch.randn(8, 6, generator=generator, dtype=torch.float64) for _ in range(5))

    def trained(as_given):
        param = torch.nn.Parameter(as_given(start.clone()))
        optimizer = hfoptim.get_optimizer_class(name)([{"params": [("layer.0.weight", param)]}], lr=0.01)
        for grad in grads:
            param.grad = as_given(grad)
            optimizer.step()
        return param.detach()

    replicated = trained(lambda tensor: distribute_tensor(tensor, mesh, [Replicate()]))
    torch.testing.assert_close(replicated.full_tensor(), trained(lambda tensor: tensor), rtol=1e-12, atol=1e-12)
