"""Preconditioners by Kronecker products: sides merged, tensors cut into blocks, factors and their roots."""

from __future__ import annotations

import pytest
import torch

from hfoptim.engine.backends import products
from hfoptim.optimizers.shared import kronecker
from hfoptim.optimizers.shared.kronecker import Blocks, Folding, add_gram, along, inverse_root, iterated, merged


@pytest.mark.parametrize(
    ("shape", "largest", "sides"),
    [
        ((), 4, (1,)),
        ((1, 1), 4, (1,)),
        ((4, 3, 2, 5), 12, (12, 10)),
        ((4, 3, 2, 5), 120, (120,)),
        ((4, 3, 2, 5), 1, (4, 3, 2, 5)),
        ((1, 2, 512, 1, 2048, 1, 3, 4), 1024, (1024, 2048, 12)),
    ],
)
def test_small_sides_are_merged(shape, largest, sides):
    assert merged(shape, largest) == sides


@pytest.mark.parametrize("shape", [(), (7,), (8, 4), (9, 10), (4, 3, 2, 5)])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_blocks_are_cut_and_joined(shape, batch):
    blocks = Blocks(Folding(len(shape), largest=1), 4)
    x = torch.randn((*batch, *shape))
    parts = blocks.cut(x)
    assert torch.equal(blocks.join(parts, x), x)
    assert all(side <= 4 for part in parts for side in part.shape[len(batch) + 1 :])
    sizes = [part[(0,) * len(batch)].numel() for part in parts]
    assert sum(sizes) == max(1, torch.Size(shape).numel())
    for kind, part in enumerate(parts):
        for side in range(len(shape)):
            square = blocks.square(kind, side, 2.0)(torch.empty(shape), torch.float32)
            assert square.shape == (*part.shape[len(batch) : len(batch) + 1], *(part.shape[len(batch) + 1 + side],) * 2)
            assert torch.equal(square, 2.0 * torch.eye(square.shape[-1]).expand_as(square))


@pytest.mark.parametrize("largest", [1, 10**6])
@pytest.mark.parametrize("shape", [(9,), (6, 10), (2, 6, 10), (5, 4, 3, 2)])
def test_factors_are_sums_of_products_along_one_side(monkeypatch, shape, largest):
    monkeypatch.setattr(products, "IN_STRIPS", largest)
    x = torch.randn(3, *shape, dtype=torch.float64)
    for side, size in enumerate(shape):
        factor = torch.randn(3, size, size, dtype=torch.float64)
        factor = factor + factor.mT
        flat = x.movedim(side + 1, 1).flatten(2) if len(shape) > 1 else x.unsqueeze(-1)
        want = 0.9 * factor + 0.2 * flat @ flat.mT
        torch.testing.assert_close(add_gram(factor, x, side, len(shape), 0.9, 0.2), want)


def test_sides_are_multiplied_each_by_its_matrix():
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    a, b = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(3, 5, 5, dtype=torch.float64)
    want = torch.einsum("nijk,nia,nkb->najb", x, a, b)
    torch.testing.assert_close(along(x, [a, None, b]), want)


def test_roots_and_iterated_bases():
    half = torch.randn(2, 6, 6, dtype=torch.float64)
    matrix = half @ half.mT
    root = inverse_root(matrix, 4, 1e-3)
    identity = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    torch.testing.assert_close(torch.linalg.matrix_power(root, 4) @ (matrix + 1e-3 * identity), identity)
    basis = torch.linalg.qr(torch.randn(2, 6, 6, dtype=torch.float64)).Q
    for _ in range(500):
        basis, _order = iterated(matrix, basis)
    turned = basis.mT @ matrix @ basis
    torch.testing.assert_close(turned, torch.diag_embed(torch.linalg.eigvalsh(matrix).flip(-1)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("root", [2, 4, 6])
def test_chebyshevs_roots_come_near_the_exact_ones_by_degree(root):
    """Eigenvalues from a twentieth of the largest on: the share that is wrong falls with the degree."""
    basis = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    matrix = (basis * torch.linspace(0.15, 3.0, 9, dtype=torch.float64)) @ basis.mT
    exact = kronecker.inverse_root(matrix, root, 1e-12)
    wrong = [
        float((kronecker.chebyshev_inverse_root(matrix, root, 1e-3, degree) - exact).norm() / exact.norm())
        for degree in (2, 10, 40)
    ]
    assert wrong[0] > 2.0 * wrong[1] > 4.0 * wrong[2]
    assert wrong[2] < 0.05
