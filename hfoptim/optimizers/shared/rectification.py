"""RAdam's rectification: how far the root of a second moment may be trusted after so few gradients."""

from __future__ import annotations

import math

from hfoptim.engine import Group, Scalars, bias_correction


def rectification(beta2: float, t: int, above: float | None = None) -> float | None:
    """What an adaptive step is multiplied by at step t; None where its variance is not known yet.

    With l = 2 / (1 - beta2) - 1 and n = l - 2 t beta2^t / (1 - beta2^t), from n = 5 on
    sqrt((n - 4) (n - 2) l / ((l - 4) (l - 2) n))   (arXiv 1908.03265, algorithm 2, where it is from n > 4 on).

    Args:
        beta2: decay rate of the second moment.
        t: step, from 1.
        above: for n above this number, in place of from 5 on, as the author's code has it.
    """
    c2 = bias_correction(beta2, t)
    longest = 2.0 / (1.0 - beta2) - 1.0
    n = longest - 2.0 * t * (1.0 - c2) / c2
    if n < 5.0 if above is None else n <= above:
        return None
    return math.sqrt((n - 4.0) / (longest - 4.0) * (n - 2.0) / n * longest / (longest - 2.0))


def rectified(t: int, group: Group) -> Scalars:
    """`lr`, and `adapted` and `eps` for a divisor of adapted * sqrt(v) + eps.

    Before there is a rectification the divisor is 1: gradient descent with momentum, or with `degenerated_to_sgd` off
    no step at all.
    """
    beta1, beta2 = group["betas"]
    lr = float(group["lr"]) / bias_correction(beta1, t)
    factor = rectification(beta2, t)
    if factor is None:
        return {"lr": lr if group["degenerated_to_sgd"] else 0.0, "adapted": 0.0, "eps": 1.0}
    return {"lr": lr * factor * math.sqrt(bias_correction(beta2, t)), "adapted": 1.0, "eps": group["eps"]}
