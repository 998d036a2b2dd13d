"""Cautious and corrected weight decay: the engine's options for every optimizer with decoupled decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import ENTRIES
from harness import SMALL, assert_follows, feed, flattened, lr_at, parameters, set_lr, values
from torch import Tensor

import hfoptim

STEPS = 25


class Written:
    """Cautious weight decay as the paper's algorithms have it, in plain torch (arXiv 2510.12402, section 2).

    x = x - lr (u + weight_decay 1[u x >= 0] x), with u that of Adam, Lion or gradient descent with momentum.
    """

    def __init__(self, kind: str, params: list[Tensor], lr: float, weight_decay: float) -> None:
        self.kind, self.params, self.weight_decay = kind, params, weight_decay
        self.param_groups = [{"lr": lr}]
        self.m = [torch.zeros_like(x) for x in params]
        self.v = [torch.zeros_like(x) for x in params]
        self.t = 0

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        lr = self.param_groups[0]["lr"]
        for x, m, v in zip(self.params, self.m, self.v, strict=True):
            g = x.grad
            assert g is not None
            if self.kind == "adam":
                m.copy_(0.9 * m + 0.1 * g)
                v.copy_(0.99 * v + 0.01 * g * g)
                u = (m / (1 - 0.9**self.t)) / ((v / (1 - 0.99**self.t)).sqrt() + 1e-6)
            elif self.kind == "lion":
                u = torch.sign(0.9 * m + 0.1 * g)
                m.copy_(0.99 * m + 0.01 * g)
            else:
                m.copy_(0.9 * m + g)
                u = m.clone()
            x.copy_(x - lr * (u + self.weight_decay * (u * x >= 0).to(x.dtype) * x))


def of(kind: str, params: Any, **options: Any) -> torch.optim.Optimizer:
    if kind == "adam":
        return hfoptim.Adam(params, decouple_wd=True, **options)
    if kind == "lion":
        return hfoptim.Lion(params, **options)
    return hfoptim.SGD(params, momentum=0.9, decouple_wd=True, **options)


@pytest.mark.parametrize("backend", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("kind", ["adam", "lion", "sgd"])
def test_cautious_decay_is_the_papers(kind: str, backend: dict[str, bool]) -> None:
    mine, other = (parameters(SMALL, torch.float64) for _ in range(2))
    start, rows = values(mine), ([], [])
    optimizer = of(kind, list(mine.items()), lr=1e-2, weight_decay=0.5, cautious_weight_decay=True, **backend)
    written = Written(kind, list(other.values()), 1e-2, 0.5)
    spared = 0
    for t in range(1, STEPS + 1):
        for each in (optimizer, written):
            set_lr(each, t, 1e-2)
        feed(mine, t, follow=other)
        feed(other, t)
        optimizer.step()
        spared += sum(int((m * x < 0).sum()) for m, x in zip(written.m, written.params, strict=True))
        written.step()
        for row, params in zip(rows, (mine, other), strict=True):
            row.append(flattened(params))
    assert spared > 0
    assert_follows(*rows, start, 1e-10)


def test_cautious_decay_takes_what_caution_has_left() -> None:
    # An entry that caution holds still is decayed: 0 agrees with every sign.
    param = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = hfoptim.Lion([param], lr=0.1, weight_decay=0.5, caution=True, cautious_weight_decay=True)
    param.grad = torch.tensor([1.0, -1.0], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.tensor([1 - 0.1 - 0.05, 1 + 0.1], dtype=torch.float64))
    param.grad = torch.tensor([-1e-6, -1.0], dtype=torch.float64)
    before = param.detach().clone()
    optimizer.step()
    torch.testing.assert_close(param.detach()[0], before[0] * (1 - 0.05))
    torch.testing.assert_close(param.detach()[1], before[1] + 0.2)


def test_adafactors_decay_follows_its_own_step_size() -> None:
    param = torch.nn.Parameter(torch.tensor([[2.0, -2.0]], dtype=torch.float64))
    moved = []
    for cautious in (False, True):
        other = torch.nn.Parameter(param.detach().clone())
        options = {"lr": 0.1, "relative_step": False, "scale_parameter": False, "weight_decay": 0.5}
        optimizer = hfoptim.Adafactor([other], **options, cautious_weight_decay=cautious)
        other.grad = torch.ones_like(other)
        optimizer.step()
        moved.append((other - param).detach())
    torch.testing.assert_close(moved[0] - moved[1], torch.tensor([[0.0, 0.1]], dtype=torch.float64))


@pytest.mark.parametrize("cls", [hfoptim.Lion, hfoptim.AdamW, hfoptim.Adafactor], ids=lambda c: c.__name__)
def test_corrected_decay_falls_with_the_square_of_lr(cls: Any) -> None:
    own = {"relative_step": False, "scale_parameter": False} if cls is hfoptim.Adafactor else {}
    mine, plain = (parameters(("vector", "matrix"), torch.float64) for _ in range(2))
    optimizer = cls(list(mine.items()), lr=1e-2, weight_decay=0.5, corrected_weight_decay=True, **own)
    other = cls(list(plain.items()), lr=1e-2, weight_decay=0.5, **own)
    assert optimizer.param_groups[0]["max_lr"] == 1e-2
    for t in range(1, 10):
        set_lr(optimizer, t, 1e-2)
        set_lr(other, t, 1e-2)
        other.param_groups[0]["weight_decay"] = 0.5 * lr_at(1e-2, t) / 1e-2
        feed(mine, t, follow=plain)
        feed(plain, t)
        optimizer.step()
        other.step()
    torch.testing.assert_close(flattened(mine), flattened(plain), rtol=1e-12, atol=1e-12)


def test_the_peak_is_the_groups_own_and_is_saved() -> None:
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [params[0]], "lr": 0.2}, {"params": [params[1]], "max_lr": 0.7}]
    optimizer = hfoptim.NvNovoGrad(groups, lr=0.1, decoupled_decay=True, corrected_weight_decay=True)
    assert [group["max_lr"] for group in optimizer.param_groups] == [0.2, 0.7]
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    again = hfoptim.NvNovoGrad([{"params": [param]} for param in params], lr=0.3, decoupled_decay=True)
    again.load_state_dict(optimizer.state_dict())
    assert [group["max_lr"] for group in again.param_groups] == [0.2, 0.7]
    assert all(group["corrected_weight_decay"] for group in again.param_groups)


@pytest.mark.parametrize("option", ["cautious_weight_decay", "corrected_weight_decay"])
@pytest.mark.parametrize("cls", [hfoptim.Adam, hfoptim.Lamb, hfoptim.SGD, hfoptim.Lars], ids=lambda c: c.__name__)
def test_without_decoupled_decay_it_is_refused(cls: Any, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}=True needs decoupled weight decay"):
        cls([torch.nn.Parameter(torch.ones(2))], lr=1e-3, **{option: True})


def test_a_corrected_decay_without_a_peak_is_refused() -> None:
    param = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="peak learning rate, which is 0"):
        hfoptim.Lion([param], lr=0.0, corrected_weight_decay=True)
    with pytest.raises(ValueError, match="exclude each other"):
        hfoptim.Lion([param], lr=0.1, corrected_weight_decay=True, decouple_lr=True)
    with pytest.raises(ValueError, match="there is no lr"):
        hfoptim.Adafactor([param], corrected_weight_decay=True)
    optimizer = hfoptim.Lion([param], lr=0.1, weight_decay=0.1)
    optimizer.param_groups[0]["corrected_weight_decay"] = True
    param.grad = torch.ones(2)
    with pytest.raises(ValueError, match="give the group max_lr"):
        optimizer.step()


_WITH_A_FLAG: list[Any] = [entry.cls for entry in ENTRIES if getattr(entry.cls, "decoupled_by", None)]


def test_no_decay_is_the_same_wherever_it_would_enter() -> None:
    for cls in _WITH_A_FLAG:
        ends = []
        for decoupled in (False, True):
            params = parameters(("matrix", "vector"))
            optimizer = cls(list(params.items()), weight_decay=0.0, foreach=True, **{cls.decoupled_by: decoupled})
            for t in (1, 2, 3):
                feed(params, t)
                optimizer.step()
            ends.append(flattened(params))
        assert torch.equal(*ends), cls.__name__
