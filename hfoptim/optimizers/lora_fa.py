"""LoRA-FA: AdamW for LoRA's factor B alone, on the gradient that moves the product most like full fine-tuning."""

from __future__ import annotations

from dataclasses import KW_ONLY, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, Group, Name, Partner, Rule, Scalars, State, hyper
from hfoptim.optimizers.adam import AdamW
from hfoptim.optimizers.shared.adapters import Adapters
from hfoptim.optimizers.shared.matrices import as_matrix

# Added to every entry of A A^T, as peft does.
_DELTA = 1e-8


@cache
def lora_fa(inner: Rule, rank: int) -> Rule:
    """The rule of B: another one's step with a gradient that A leads to."""

    def met(first: Tensor, inverse: Tensor) -> tuple[Tensor]:
        first = first.flatten(2)
        square = first @ first.mT + _DELTA * torch.eye(rank, dtype=first.dtype, device=first.device)
        return (torch.linalg.pinv(torch.nan_to_num(square, 0.0, 0.0, 0.0)),)

    def per_step(t: int, group: Group) -> Scalars:
        return {**inner.per_step(t, group), "unscaled": group["lora_scaling"] ** -2.0}

    def fn(grad: Tensor, param: Tensor, inverse: Tensor, *args: Any) -> tuple[Any, ...]:
        update, *state = inner.fn(grad @ inverse * args[-1].unscaled, param, *args)
        return update, None, *state

    def square(param: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.zeros(rank, rank, dtype=dtype, device=param.device)

    fn.__name__ = "lora_fa"
    partner = Partner(("inverse",), met)
    state = {"inverse": State(square), **inner.state}
    return replace(inner, fn=fn, scope=MATRIX, state=state, per_step=per_step, shape=as_matrix, partner=partner)


class LoraFAOptimizer(Adapters, AdamW):
    """AdamW for LoRA's factor B with A frozen (LoRA-FA): less memory for activations, as A needs no gradient.

    With A of r rows, B of r columns, s = `lora_scaling`, G the gradient of B, t the step:

        H = G (A A^T + 1e-8)^+ / s^2
        m = beta1 m + (1 - beta1) H
        v = beta2 v + (1 - beta2) H^2
        B = B - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps);  B = B - lr weight_decay B

    and for what is no factor, p = p - the step of `AdamW`, whose options and state these are. H is the gradient with
    which s B A moves most like the whole matrix would. B has `inverse`, that of A A^T, in its state, which is made anew
    before each step. A and B are found by peft's names (`lora_A`, `lora_B`), so the optimizer needs those of the
    parameters, A's too. It sets `requires_grad` of A to False, which has to happen before DistributedDataParallel goes
    around the model, as it does in a Trainer.

    It needs no `create_lorafa_optimizer`: by name it works in a Trainer. What that sets to lora_alpha / r is an option
    of groups and of `param_options` here; H's length matters to AdamW only beside eps. peft multiplies in bfloat16
    where the machine has it, here it is the precision of the step.

    Raises:
        ValueError: a factor without the other, or shapes that do not fit.
        TypeError: a complex factor.

    Source:
        Zhang et al., LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning, arXiv
        2308.03303; peft, `optimizers.lorafa`.
    """

    names = (Name("lora_fa"),)
    _: KW_ONLY
    lora_scaling: float = hyper(1.0, "the factor s of the adapters, lora_alpha / r", above=0.0, in_peers=False)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for factor in self._factors.values():
            if not factor.is_first:
                factor.partner.requires_grad_(False)

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        inner, factor = super().rule_for(param, group), self.factor_of(param, group)
        return inner if factor is None or factor.is_first else lora_fa(inner, param.shape[1])

    def taken_by(self, param: Tensor, group: dict[str, Any]) -> str:
        factor = self.factor_of(param, group)
        return "AdamW" if factor is None else "frozen" if factor.is_first else "factor B"
