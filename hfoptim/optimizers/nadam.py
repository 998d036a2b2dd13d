"""NAdam: Adam with Nesterov's momentum, in its two forms."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Decay, Group, Name, Rule, RuleOptimizer, Scalars, hyper
from hfoptim.optimizers.shared.clipping import CLIPPING_THRESHOLD, clipped_by_rms
from hfoptim.optimizers.shared.decoupling import DECOUPLE_LR, MAX_LR, FullyDecoupling
from hfoptim.optimizers.shared.moments import adam_state, mixed, nesterov_moments_step, one_ahead
from hfoptim.optimizers.shared.peer_flags import TIMM_DECAY

# A product of momenta below this is 0 beside 1.
_NOTHING = 1e-17


def _momentum(t: int, beta1: float, decay: float) -> float:
    """mu, the momentum of step `t`."""
    return float(beta1 * (1.0 - 0.5 * 0.96 ** (t * decay)))


def _product(t: int, beta1: float, decay: float) -> float:
    """That of the momenta of all steps up to `t`; it is 0 in double precision after some 60 of them."""
    product = 1.0
    for step in range(1, t + 1):
        product *= _momentum(step, beta1, decay)
        if product < _NOTHING:
            return 0.0
    return product


def _scheduled(t: int, group: Group) -> Scalars:
    """Weights of gradient and momentum by the momenta so far and the next one."""
    beta1, decay = group["betas"][0], group["momentum_decay"]
    momentum, following = _momentum(t, beta1, decay), _momentum(t + 1, beta1, decay)
    product = _product(t, beta1, decay)
    return mixed(t, group, (1.0 - momentum) / (1.0 - product), following / (1.0 - product * following))


nadam = Rule(nesterov_moments_step, ELEMENT, adam_state(amsgrad=False), _scheduled)
nadamw = Rule(nesterov_moments_step, ELEMENT, adam_state(amsgrad=False), one_ahead)


class NAdam(RuleOptimizer):
    """Adam with Nesterov's momentum, whose momentum grows over the steps, with torch.optim.NAdam's numbers.

    With g the gradient, p the parameter, t the step, M_t the product of mu_1 to mu_t:

        g = g + weight_decay p                                  (decoupled_weight_decay: - lr weight_decay p at the end)
        mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        u = (1 - mu_t) / (1 - M_t) g + mu_(t+1) / (1 - M_(t+1)) m
        p = p - lr u / (sqrt(v / (1 - beta2^t)) + eps)

    State: `exp_avg` (m), `exp_avg_sq` (v); a state_dict of torch.optim.NAdam loads. M_t follows from the step and the
    options of the group, and is exact; torch carries it along in float32, which makes a difference of 1e-7. timm's
    NAdamLegacy has the same numbers, with momentum_decay called schedule_decay. (optax has Dozat's simplified form,
    without the schedule.)

    Source:
        Dozat, Incorporating Nesterov Momentum into Adam, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ;
        torch.optim.NAdam.
    """

    decay = Decay.COUPLED
    decoupled_by = "decoupled_weight_decay"
    rule = nadam
    peer_state = {"mu_product": None}
    names = (Name("nadam", aliases=("nadam_legacy",)),)
    lr: float = hyper(2e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "last momentum and decay rate of m, and decay rate of v")
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    momentum_decay: float = hyper(4e-3, "how fast the momentum grows from beta1 / 2 to beta1")
    decoupled_weight_decay: bool = hyper(False, "decoupled weight decay")


class NAdamW(FullyDecoupling):
    """Adam with Nesterov's momentum and decoupled weight decay, as MLCommons' AlgoPerf has it.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        u = (beta1 m + (1 - beta1) g) / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        p = p - lr u - lr weight_decay p                        (decouple_lr: - lr / max_lr weight_decay p)

    With `clipping_threshold`, u is divided by max(1, rms(g / (sqrt(v / (1 - beta2^t)) + eps)) / clipping_threshold),
    timm's, after StableAdamW (arXiv 2304.13013); the decay is not.

    State: `exp_avg` (m), `exp_avg_sq` (v); a state_dict of timm's NAdamW loads. NAdam has another momentum: the two are
    far apart in their first steps.

    Source:
        Choi et al., On Empirical Comparisons of Optimizers, arXiv 1910.05446, table 1; AlgoPerf by MLCommons,
        `nadamw`; timm 1.0, `timm.optim.NAdamW`.
    """

    peer_flags = TIMM_DECAY
    names = (
        Name("nadamw"),
        Name(
            "cnadamw",
            "NAdamW that drops entries of the update which point against the gradient",
            "https://arxiv.org/abs/2411.16085",
            {"caution": True},
        ),
        Name(
            "nadamc",
            "NAdamW with weight decay that falls with the square of lr",
            "https://arxiv.org/abs/2506.02285",
            {"corrected_weight_decay": True},
        ),
        Name(
            "cnadamc",
            "nadamc with caution",
            "https://arxiv.org/abs/2506.02285",
            {"caution": True, "corrected_weight_decay": True},
        ),
    )
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")
    weight_decay: float = hyper(1e-2, "decoupled weight decay, per step and unit of lr")
    _: KW_ONLY
    decouple_lr: bool = DECOUPLE_LR
    max_lr: float | None = MAX_LR
    clipping_threshold: float | None = CLIPPING_THRESHOLD

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return nadamw if group["clipping_threshold"] is None else clipped_by_rms(nadamw)
