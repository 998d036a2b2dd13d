"""Gradient descent with noise."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from typing import Any

from hfoptim.engine import ELEMENT, Group, Name, RuleOptimizer, Scalars, add_scaled, fresh_noise, hyper, rule
from hfoptim.optimizers.shared.decay_options import OWN_DECAY


def _per_step(t: int, group: Group) -> Scalars:
    return {"size": math.sqrt(group["eta"] / t ** group["gamma"])}


@rule(ELEMENT, per_step=_per_step, noise=fresh_noise)
def noisy_sgd(grad: Any, param: Any, noise: Any, h: Any) -> tuple[Any, None]:
    """The gradient with noise."""
    return add_scaled(grad, noise, h.size), None


class NoisySGD(RuleOptimizer):
    """Gradient descent with normal noise in the gradient that fades away: for very deep networks.

    With g the gradient, p the parameter, t the step, n of a standard normal distribution, entry by entry:

        p = p - lr (g + sqrt(eta / t^gamma) n) - lr weight_decay p

    The noise of an entry goes by its index, by the step and by the place of its parameter in the optimizer: the same on
    every rank, and after a checkpoint. State: `noise` (n), which is not kept in fewer bits.

    As optax, but for the noise, which there comes from a key, and the weight decay.

    Source:
        Neelakantan et al., Adding Gradient Noise Improves Learning for Very Deep Networks, arXiv 1511.06807; optax,
        `noisy_sgd`.
    """

    rule = noisy_sgd
    names = (Name("noisy_sgd"),)
    lr: float = hyper(1e-3, "learning rate")
    eta: float = hyper(0.01, "variance of the noise at the first step")
    gamma: float = hyper(0.55, "exponent by which it falls")
    _: KW_ONLY
    weight_decay: float = OWN_DECAY
