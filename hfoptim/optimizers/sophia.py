"""Sophia: momentum over the Hessian's diagonal, clipped entry by entry; two ways to estimate that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any

import torch

from hfoptim.engine import (
    ELEMENT,
    Curvature,
    Group,
    Name,
    RuleOptimizer,
    RunState,
    Scalars,
    State,
    ema,
    hyper,
    rule,
    zeros,
)
from hfoptim.engine.checks import warn
from hfoptim.optimizers.shared import hutchinson

# Steps without an estimate after which somebody is told: the authors make one every 10.
_LONG = 100
# The estimate is written between the steps, so it is kept as it is.
_exact = State(zeros.init)


def _gauss_newton(t: int, group: Group) -> Scalars:
    return {"alpha1": 1.0 - group["betas"][0], "scale": group["rho"] * group["bs"]}


@rule(ELEMENT, per_step=_gauss_newton, exp_avg=zeros, hessian=_exact)
def sophia_g(grad: Any, param: Any, exp_avg: Any, hessian: Any, h: Any) -> tuple[Any, Any, None]:
    """The momentum over the Hessian's diagonal, at most 1."""
    exp_avg = ema(exp_avg, grad, h.alpha1)
    return (exp_avg / (hessian * h.scale + 1e-15)).clamp(min=-1.0, max=1.0), exp_avg, None


def _one_more(state: Mapping[str, Any], totals: Mapping[str, Any], group: Group) -> dict[str, int]:
    return {"since": state["since"] + 1}


class SophiaG(RuleOptimizer):
    """Momentum over the Hessian's diagonal, which squares of gradients for sampled labels estimate (Gauss-Newton).

    With g the gradient, p the parameter:

        m = beta1 m + (1 - beta1) g
        p = p - lr weight_decay p - lr clip(m / (rho bs h + 1e-15), -1, 1)

    and in `update_hessian()`, with g' the gradients there are then:

        h = beta2 h + (1 - beta2) g'^2

    The loop has to call that about every 10 steps (`estimate_is_due` says when), after a backward pass of the same
    model with labels drawn from its own predictions, their cross entropy averaged over the batch
    (Gauss-Newton-Bartlett):

        logits = model(inputs)
        labels = torch.distributions.Categorical(logits=logits).sample()
        cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
        optimizer.update_hessian()
        optimizer.zero_grad()

    `bs` is the number of labels in a batch, batch size times sequence length, an argument of step in the author's code.
    Until the first call h is 0 and every entry moves by lr; after 100 steps without one a warning says so. In the
    Trainer all of this happens by itself, after every `update_period`-th step (the author's loop).

    State: `exp_avg` (m), `hessian` (h); in the groups `since`, the steps since the last estimate.

    Source:
        Liu et al., Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training,
        arXiv 2305.14342; Liuhong99/Sophia.
    """

    rule = sophia_g
    run_state = RunState({"since": 0}, _one_more, shared=True)
    names = (Name("sophiag", aliases=("sophia",)),)
    lr: float = hyper(1e-4, "learning rate")
    betas: tuple[float, float] = hyper((0.965, 0.99), "decay rates of m and h")
    rho: float = hyper(0.04, "scale of h; about a tenth to a half of the entries should not be clipped")
    weight_decay: float = hyper(0.1, "decoupled weight decay, per step and unit of lr")
    _: KW_ONLY
    bs: int = hyper(5120, "labels in a batch", low=1)
    update_period: int = hyper(10, "steps after which the Trainer makes a new estimate", low=1)

    @torch.no_grad()
    def update_hessian(self) -> None:
        """Take the gradients there are, of a loss with labels drawn from the model's predictions, into the estimate."""
        entries = self._entries()
        self._collect(entries)  # makes what state there is not
        for index, param, grad in entries:
            hessian = self.state[param]["hessian"]
            if param.is_complex():
                hessian, grad = torch.view_as_real(hessian), torch.view_as_real(grad)
            grad = grad.to(hessian.dtype)
            beta2 = self.param_groups[index]["betas"][1]
            hessian.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        for group in self.param_groups:
            group["since"] = 0

    @property
    def estimate_is_due(self) -> bool:
        """Whether `update_period` steps have been taken since the last `update_hessian()`."""
        return bool(self.param_groups[0]["since"] >= self.param_groups[0]["update_period"])

    def check_ready(self) -> None:
        if self.param_groups[0]["since"] == max(_LONG, self.param_groups[0]["update_period"] + 1):
            warn(
                f"SophiaG has taken {_LONG} steps without an estimate of the Hessian; call "
                f"optimizer.update_hessian() about every 10 steps, after a backward pass with labels drawn from the "
                f"model's own predictions"
            )


def _hutchinson(t: int, group: Group) -> Scalars:
    beta1, beta2 = group["betas"]
    due = (t - 1) % group["update_period"] == 0
    return {"alpha1": 1.0 - beta1, "alpha2": 1.0 - beta2 if due else 0.0, "eps": group["eps"], "most": group["p"]}


@rule(ELEMENT, per_step=_hutchinson, momentum=zeros, hessian_moment=zeros, hessian=_exact)
def sophia_h(
    grad: Any, param: Any, momentum: Any, hessian_moment: Any, hessian: Any, h: Any
) -> tuple[Any, Any, Any, None]:
    """The momentum over the average of the Hessian's diagonal, bounded."""
    momentum, hessian_moment = ema(momentum, grad, h.alpha1), ema(hessian_moment, hessian, h.alpha2)
    return (momentum / hessian_moment.clamp(min=h.eps)).clamp(min=-h.most, max=h.most), momentum, hessian_moment, None


class SophiaH(RuleOptimizer):
    """Momentum over the Hessian's diagonal, which products of it with random vectors estimate; gradients need a graph.

    With g the gradient, H the Hessian of the loss, p the parameter:

        every update_period steps, from the first on:
            D = mean over n_samples of z * (H z), with random z
            h = beta2 h + (1 - beta2) D
        m = beta1 m + (1 - beta1) g
        p = p - lr weight_decay p - lr clip(m / max(h, eps), -c, c)             (c is the option `p`)

    Gradients need a graph at those steps: `loss.backward(create_graph=True)`; see `Adahessian`, which estimates D in
    the same way, for what follows from that. The paper's form, clip(m / max(gamma h, eps), -1, 1), has lr times c in
    place of lr, 1 / c in place of gamma. Follows pytorch_optimizer 4.1, whose `num_samples` is n_samples.

    State: `momentum` (m), `hessian_moment` (h), `hessian` (D).

    Raises:
        TypeError: from `step`, a complex parameter, or a sharded one whose gradient has no graph.
        RuntimeError: from `step`: no gradient has a graph, or GradScaler has scaled them.

    Source:
        Liu et al., Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training,
        arXiv 2305.14342; pytorch_optimizer, `SophiaH`.
    """

    rule = sophia_h
    curvature = Curvature("hessian", "update_period", hutchinson.diagonals)
    names = (Name("sophiah"),)
    lr: float = hyper(6e-2, "learning rate")
    betas: tuple[float, float] = hyper((0.96, 0.99), "decay rates of m and h")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    p: float = hyper(1e-2, "largest entry of m / h")
    update_period: int = hyper(10, "steps for which one estimate is used", low=1)
    n_samples: int = hyper(1, "random z per estimate", low=1)
    hessian_distribution: str = hyper("gaussian", "of the entries of z", choices=("gaussian", "rademacher"))
    eps: float = hyper(1e-12, "least h that is divided by", above=0.0)
