"""Mechanic and TRAC: the way that an optimizer has gone, scaled by a number that is found from the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from hfoptim.engine import Group
from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.bucket_step import add_sums
from hfoptim.engine.checks import dense, integer, number
from hfoptim.engine.distributed.dtensor import Groups, aligned, groups_of, local, sum_over_ranks
from hfoptim.wrappers.closures import evaluate, refuse_those_with_closures
from hfoptim.wrappers.wrapper import Wrapper

REFERENCE = "reference_weights"
BETAS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)


class Tuned(Wrapper):
    """Scales the way from the first weights by a number S, which some tuners, one for each decay rate, find together.

    With p the parameters, p_0 the first ones, g the gradient, u the change that the inner optimizer makes:

        D = (p - p_0) / (S + eps)
        S = the sum of the tuners' scales, which see <D, g>
        p = p_0 + max(S, 0) (D + u)

    The tuners' numbers lie in every group as `<prefix>_tuner`, row by row, the scales first: numbers of Python where
    the parameters are on a CPU, else a tensor on their device, so that nothing waits for it. Sums over all parameters
    and ranks take one all-reduce. A subclass says what the rows begin with and what becomes of them.
    """

    # The name of the options and counters that its groups have; what each row begins with.
    prefix: ClassVar[str]
    rows: ClassVar[tuple[float, ...]]
    keeps = {REFERENCE: False}
    keeps_exact = frozenset({REFERENCE})

    def __init__(self, optimizer: Optimizer, options: Mapping[str, Any]) -> None:
        super().__init__(optimizer, options)

    def tuned(self, rows: Tensor, betas: Tensor, totals: Mapping[str, Tensor], group: Group) -> list[Tensor]:
        """The next rows.

        Args:
            rows: those there are, a column for each decay rate, in double precision.
            betas: the decay rates.
            totals: over all parameters, `way_grad` of (p - p_0) g and the same of other products: `way_param`, and
                `grad_sq`, `param_sq`.
            group: the first group, for the options.
        """
        raise NotImplementedError

    def check_inner(self, optimizer: Optimizer) -> None:
        refuse_those_with_closures(optimizer, f"where {type(self).__name__} has one gradient per step")

    def check_group(self, group: dict[str, Any]) -> None:
        betas = f"{self.prefix}_betas"
        given = group[betas]
        if isinstance(given, (str, Tensor)) or not isinstance(given, Sequence) or not given:
            raise TypeError(f"{betas}={given!r}, expected a tuple of decay rates such as {BETAS[:3]}")
        group[betas] = tuple(number(f"{betas}[{place}]", beta, 0.0, 1.0) for place, beta in enumerate(given))
        counter, tuner = f"{self.prefix}_step", f"{self.prefix}_tuner"
        group[counter] = integer(counter, group[counter], 0)
        length, found = len(self.rows) * len(group[betas]), group[tuner]
        if found is not None and not isinstance(found, Tensor):
            group[tuner] = found = tuple(float(value) for value in found)
        if found is not None and len(found) != length:
            raise ValueError(
                f"{tuner} has {len(found)} numbers, expected {length}: {len(self.rows)} for each of {betas}"
            )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the inner optimizer, and scale the way from the first weights.

        Args:
            closure: re-evaluates the model and returns the loss; called once, with gradients enabled.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: groups disagree in an option of the wrapper's, of which there is one for all of them.
        """
        self.complete_groups()
        loss = evaluate(self, closure)
        before, totals = self._look()
        self._inner.step()
        if before and not self.only_made_state(f"{self.prefix}_step"):
            self._move(before, totals)
        return loss

    @_disable_dynamo  # its numbers change from step to step, and would compile anew
    @leave_undisturbed
    @torch.no_grad()
    def _look(self) -> tuple[dict[Tensor, Tensor], dict[str, Tensor]]:
        """The exact weights of parameters with a gradient, and the sums over them."""
        self.refuse_differing()
        kept, before = self.kept[REFERENCE], {}
        sums: dict[Groups, dict[str, Tensor]] = {}
        for index, group in enumerate(self.param_groups):
            for position, param in enumerate(group["params"]):
                if param.grad is None:
                    continue
                dense(type(self).__name__, param.grad, group, index, position)
                self.refuse_lossy(param, group)
                weight = before[param] = self.exact(param).clone()
                if param not in kept:
                    kept[param] = self.exact_copy(param)
                grad = local(aligned(param.grad.detach(), param)).to(weight.dtype)
                grad = -grad if group.get("maximize") else grad
                add_sums(sums.setdefault(groups_of(param), {}), _products(weight - local(kept[param]), grad, weight))
        return before, sum_over_ranks(sums) if sums else {}

    @_disable_dynamo  # its numbers change from step to step, and would compile anew
    @leave_undisturbed
    @torch.no_grad()
    def _move(self, before: Mapping[Tensor, Tensor], totals: Mapping[str, Tensor]) -> None:
        first = self.param_groups[0]
        device = totals["way_grad"].device
        betas = torch.tensor(first[f"{self.prefix}_betas"], dtype=torch.float64, device=device)
        known = first[f"{self.prefix}_tuner"]
        if known is None:
            rows = torch.tensor(self.rows, dtype=torch.float64, device=device)[:, None].expand(-1, len(betas))
        else:
            rows = torch.as_tensor(known, dtype=torch.float64, device=device).view(-1, len(betas))
        new = torch.stack(self.tuned(rows, betas, totals, first))
        old_scale, scale = rows[0].sum() + first[f"{self.prefix}_eps"], new[0].sum().clamp(min=0.0)
        for param, old in before.items():
            start, there = local(self.kept[REFERENCE][param]), old.device
            way = (old - start) / old_scale.to(there, old.dtype) + (self.exact(param) - old)
            self.write(param, start + way * scale.to(there, old.dtype))
        flat = new.flatten()
        for group in self.param_groups:
            group[f"{self.prefix}_step"] += 1
            group[f"{self.prefix}_tuner"] = tuple(flat.tolist()) if device.type == "cpu" else flat


class Mechanic(Tuned):
    """Finds the learning rate of any optimizer: lr is a factor of it, or a schedule from 1 to 0.

    With p the parameters, p_0 the first ones, g the gradient, u the change that the inner optimizer makes, and, for
    each of n decay rates beta, a scale s with sums m, v and r; norms and products are over all parameters together:

        S = sum of s,  D = (p - p_0) / (S + eps)
        h = <D, g + decay S (|g| / |p|) p>
        m = max(beta m, |h|)
        v = beta^2 v + h^2
        r = max(0, beta r - s h)
        s = (m s_init / n + r) / (sqrt(v) + eps)
        p = p_0 + (sum of s) (D + u)

    m begins at 1e-6, all else at 0. One copy of the weights is kept, a step takes another for as long as it runs. The
    inner optimizer's own weight decay goes into u. With 16-bit parameters it needs an inner optimizer of hfoptim, which
    keeps what rounding takes.

    By name: `mechanic_adamw`, with the options `mechanic_decay`, `mechanic_betas`, `mechanic_s_init` and
    `mechanic_eps`, which are the same in all groups. What has been found is in the groups' `mechanic_tuner`, the n
    scales first.

    Args:
        optimizer: any torch optimizer that evaluates no model in its step.
        s_decay (default 0.01): decay of the scaled weights, at least 0.
        betas (0.9, 0.99, ..., 0.999999): decay rates, each in [0, 1).
        s_init (1e-8): about the first scale, at least 0.
        eps (1e-8): added to the denominators, at least 0.

    Raises:
        TypeError: no optimizer, or an option of the wrong type.
        ValueError: an option out of range, or an inner optimizer that takes closures.

    Source:
        Cutkosky, Defazio and Mehta, arXiv 2306.00144; first values as in optimizedlearning/mechanic, the authors' code.
        That code takes p in h and in its norm after the inner step, here it is the p at which g was taken, as in the
        paper. optax's mechanize differs: it clips h by the last m, lets r become negative, and begins at s = s_init and
        m = 0.
    """

    prefix = "mechanic"
    rows = (0.0, 0.0, 0.0, 1e-6)
    by_name = {"mechanic_decay": 0.01, "mechanic_betas": BETAS, "mechanic_s_init": 1e-8, "mechanic_eps": 1e-8}
    counters = {"mechanic_step": 0, "mechanic_tuner": None}
    expects = REFERENCE, lambda group: group.get("mechanic_step", 0) > 0

    def __init__(
        self,
        optimizer: Optimizer,
        s_decay: float = 0.01,
        betas: Sequence[float] = BETAS,
        s_init: float = 1e-8,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(optimizer, dict(zip(self.by_name, (s_decay, betas, s_init, eps), strict=True)))

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        for name in ("mechanic_decay", "mechanic_s_init", "mechanic_eps"):
            group[name] = number(name, group[name])

    def tuned(self, rows: Tensor, betas: Tensor, totals: Mapping[str, Tensor], group: Group) -> list[Tensor]:
        scales, reward, squares, largest = rows
        eps, scale = group["mechanic_eps"], scales.sum()
        per_weight = group["mechanic_decay"] * scale * totals["grad_sq"].sqrt() / (totals["param_sq"].sqrt() + eps)
        product = (totals["way_grad"] + per_weight * totals["way_param"]) / (scale + eps)
        largest = torch.maximum(betas * largest, product.abs())
        squares = betas.square() * squares + product.square()
        reward = (betas * reward - scales * product).clamp(min=0.0)
        scales = (largest * (group["mechanic_s_init"] / len(betas)) + reward) / (squares.sqrt() + eps)
        return [scales, reward, squares, largest]


class TRAC(Tuned):
    """Scales any optimizer's way from the first weights without a learning rate to tune, for tasks that change.

    With p the parameters, p_0 the first ones, g the gradient, u the change that the inner optimizer makes, and, for
    each of some decay rates beta, a scale s with sums v and c; products are over all parameters together:

        S = max(0, sum of s),  D = (p - p_0) / (S + eps)
        h = <D, g>
        v = beta^2 v + h^2
        c = beta c - h
        s = s_init erfi(c / (sqrt(2 v) + eps)) / erfi(1 / sqrt(2))
        p = p_0 + max(0, sum of s) (D + u)

    c begins at 1e-8, all else at 0. erfi is the imaginary error function. One copy of the weights is kept, a step takes
    another for as long as it runs. With 16-bit parameters it needs an inner optimizer of hfoptim, which keeps what
    rounding takes.

    By name: `trac_adamw`, with the options `trac_betas`, `trac_s_init` and `trac_eps`, which are the same in all
    groups. What has been found is in the groups' `trac_tuner`, the scales first.

    Args:
        optimizer: any torch optimizer that evaluates no model in its step.
        betas (default (0.9, 0.99, ..., 0.999999)): decay rates, each in [0, 1).
        s_init (1e-8): scale of the tuners, at least 0.
        eps (1e-8): added to the denominators, at least 0.

    Raises:
        TypeError: no optimizer, or an option of the wrong type.
        ValueError: an option out of range, or an inner optimizer that takes closures.

    Source:
        Muppidi, Zhang and Yang, arXiv 2405.16642; ComputationalRobotics/TRAC, the authors' code, whose erfi (that of
        pytorch_optimizer, too) is off by up to 1 % in its range; here it is exact.
    """

    prefix = "trac"
    rows = (0.0, 0.0, 1e-8)
    by_name = {"trac_betas": BETAS, "trac_s_init": 1e-8, "trac_eps": 1e-8}
    counters = {"trac_step": 0, "trac_tuner": None}
    expects = REFERENCE, lambda group: group.get("trac_step", 0) > 0

    def __init__(
        self, optimizer: Optimizer, betas: Sequence[float] = BETAS, s_init: float = 1e-8, eps: float = 1e-8
    ) -> None:
        super().__init__(optimizer, dict(zip(self.by_name, (betas, s_init, eps), strict=True)))

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        for name in ("trac_s_init", "trac_eps"):
            group[name] = number(name, group[name])

    def tuned(self, rows: Tensor, betas: Tensor, totals: Mapping[str, Tensor], group: Group) -> list[Tensor]:
        scales, squares, against = rows
        eps = group["trac_eps"]
        product = totals["way_grad"] / (scales.sum() + eps)
        squares = betas.square() * squares + product.square()
        against = betas * against - product
        found = erfi(against / ((2.0 * squares).sqrt() + eps))
        return [found * (group["trac_s_init"] / _ERFI_OF_ONE_SIGMA), squares, against]


def _products(way: Tensor, grad: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Sums over the entries of three tensors of one shape, in double precision."""
    way, grad, weight = (torch.view_as_real(each) if each.is_complex() else each for each in (way, grad, weight))
    parts = {"way_grad": way * grad, "way_param": way * weight, "grad_sq": grad * grad, "param_sq": weight * weight}
    return {name: part.sum(dtype=torch.float64) for name, part in parts.items()}


def erfi(x: Tensor) -> Tensor:
    """The imaginary error function of numbers in double precision, up to 26, beyond which it is infinite.

    By Rybicki's sampling of Dawson's integral: 2/pi times the sum over odd n of exp(2 n w x - (n w)^2) / n, whose error
    is that of exp(x^2) times exp(-(pi / 2w)^2), below double precision for w = 1/4.
    """
    places = torch.arange(1, 141, 2, dtype=torch.float64, device=x.device)
    exponent, less = x.abs().unsqueeze(-1) * (places * 0.5), (places * 0.25).square()
    # exp(e - less) - exp(-e - less), without cancellation where e is small
    terms = (exponent - less).exp() * -torch.expm1(-2.0 * exponent) / places
    return (2.0 / math.pi) * terms.sum(-1) * x.sign()


_ERFI_OF_ONE_SIGMA = float(erfi(torch.tensor(math.sqrt(0.5), dtype=torch.float64)))
