"""VSGD."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import ELEMENT, Group, Name, RuleOptimizer, Scalars, State, ema, hyper, nonnegative, rule, zeros

# Twice the shape of the Gamma distributions is 2 ps + 1 and a little more, which keeps it from dividing by 0.
_ABOVE_ONE = 1e-4


def _per_step(t: int, group: Group) -> Scalars:
    prior, shape = 2.0 * group["ps"], 2.0 * group["ps"] + 1.0 + _ABOVE_ONE
    prior_noise = prior * group["ghattg"]
    # The first variances are those of the prior: a weight, not a branch.
    first = 1.0 / (shape - 1.0) if t == 1 else 0.0
    return {
        "prior": prior,
        "prior_noise": prior_noise,
        "first": prior * first,
        "first_noise": prior_noise * first,
        "inverse": 0.0 if t == 1 else 1.0 / shape,
        "rate": t ** -group["tau1"],
        "rate_noise": t ** -group["tau2"],
        "eps": group["eps"],
    }


# Rates of Gamma distributions that span many orders of magnitude, kept exact.
_RATE = State(nonnegative.init, signed=False)


@rule(ELEMENT, per_step=_per_step, mug=zeros, bg=_RATE, bhg=_RATE)
def vsgd(grad: Any, param: Any, mug: Any, bg: Any, bhg: Any, h: Any) -> tuple[Any, Any, Any, Any]:
    """A Gaussian belief of the true gradient, from noisy ones; both variances are estimated."""
    variance, noise = bg * h.inverse + h.first, bhg * h.inverse + h.first_noise
    both = variance + noise
    mean = (grad * variance + mug * noise) / both
    left = variance * noise / both
    changed, missed = mean - mug, grad - mean
    bg = ema(bg, changed * changed + left + h.prior, h.rate)
    bhg = ema(bhg, missed * missed + left + h.prior_noise, h.rate_noise)
    return mean / ((mean * mean + left).sqrt() + h.eps), mean, bg, bhg


class VSGD(RuleOptimizer):
    """Adam from Bayesian inference: the true gradient and the noise of the one that is seen, both estimated.

    With g the gradient, p the parameter, t the step, a = 2 ps + 1 + 1e-4, b and c at first such that s and n are
    2 ps / (a - 1) and 2 ghattg ps / (a - 1):

        s = b / a;  n = c / a
        m' = (s g + n m) / (s + n);  u = s n / (s + n)
        b = b + t^-tau1 (2 ps + (m' - m)^2 + u - b)
        c = c + t^-tau2 (2 ghattg ps + (g - m')^2 + u - c)
        p = p - lr m' / (sqrt(m'^2 + u) + eps) - lr weight_decay p;  m = m'

    State: `mug` (m), `bg` (b), `bhg` (c). Follows the author; pytorch_optimizer agrees, with lr as the first argument.

    Source:
        Chen et al., arXiv 2404.06549; generativeai-tue/vsgd.
    """

    rule = vsgd
    names = (Name("vsgd"),)
    ghattg: float = hyper(30.0, "prior ratio of the variances of noise and gradient", above=0.0)
    ps: float = hyper(1e-8, "strength of the prior", above=0.0)
    tau1: float = hyper(0.81, "how fast the rate of b falls")
    tau2: float = hyper(0.9, "how fast the rate of c falls")
    lr: float = hyper(0.1, "learning rate")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    eps: float = hyper(1e-8, "added to the root of the second moment")
