"""How an update reaches a parameter: sign, weight decay, learning rate, caution.

Written once, for tensors and for `TensorList`s, eager and traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import storage
from hfoptim.engine.plan import DECOUPLED_PLACES, Decay, Plan
from hfoptim.engine.rule import add_scaled, cautious
from hfoptim.engine.tensor_slots import TensorSlots


def step_in_place(plan: Plan, h: Any, row: TensorSlots, seed: int = 0, start: int = 0) -> None:
    """One step of one parameter, in place.

    Args:
        plan: the rule and the options.
        h: scalars by name.
        row: the parameter's tensors, or a piece of them.
        seed: of the random bits.
        start: index of the piece's first entry in the parameter, in logical order.
    """
    weight, state = storage.decode(plan, row)
    new, *new_state = moved(plan, h, row.grad, weight, state, overwrite=weight is row.param)
    storage.encode(plan, row, new, new_state, seed, start)


def entering(plan: Plan, h: Any, grad: Any, param: Any) -> tuple[Any, Any]:
    """(parameter, gradient) as a rule sees them: in the compute dtype, signed, and changed as options say.

    What lies along the parameter goes first, then adaptive clipping, which compares with the gradient of the loss.
    Gradient centralisation (arXiv 2004.01461) comes last, as in its authors' code, and takes away the mean of what a
    coupled decay has added, too.
    """
    weight, grad = param.to(plan.dtype), grad.to(plan.dtype)
    if plan.maximize:
        grad = -grad
    if plan.orthogonal is not None:
        grad = orthogonal_to(grad, weight, plan.orthogonal or None, 4.0 * torch.finfo(plan.dtype).eps)
    if plan.clipped is not None:
        grad = clipped_by_units(grad, weight, plan.clipped or None, h.adaptive_clip)
    if plan.decay is Decay.COUPLED:
        grad = add_scaled(grad, weight, h.weight_decay)
    if plan.centralized:
        grad = grad - grad.mean(plan.centralized, keepdim=True)
    return weight, grad


def clipped_by_units(grad: Any, param: Any, dims: tuple[int, ...] | None, factor: Any) -> Any:
    """The gradient with norms of at most `factor` times the parameter's, unit by unit (arXiv 2102.06171).

    Args:
        grad, param: tensors of one shape.
        dims: the dimensions of a unit; None: all are one.
        factor: the largest ratio of the norms.
    """
    most = param.norm(2, dims, dims is not None).clamp(min=1e-3) * factor
    norm = grad.norm(2, dims, dims is not None).clamp(min=1e-6)
    return grad * (most / norm).clamp(max=1.0)


def orthogonal_to(grad: Any, param: Any, dims: tuple[int, ...] | None, rounding: float) -> Any:
    """What of the gradient is at right angles to the parameter, at the norm that it had (arXiv 2501.04697).

    Args:
        grad, param: tensors of one shape.
        dims: the dimensions of the parameter; None: all.
        rounding: the share of its norm below which nothing but rounding is left, of which there is no direction.
    """
    keep = dims is not None
    along = (grad * param).sum(dims, keep) / ((param * param).sum(dims, keep) + 1e-30)
    rest = grad - param * along
    norm, left = grad.norm(2, dims, keep), rest.norm(2, dims, keep)
    return rest * torch.where(left > norm * rounding, norm / (left + 1e-30), 0.0)


def on_sphere(param: Any, update: Any, lr: Any, dims: tuple[int, ...] | None) -> Any:
    """The parameter moved along the update by `lr` times its norm, and brought back to that norm (arXiv 2606.16899).

    Args:
        param, update: tensors of one shape.
        lr: the length of the way, as a share of the norm.
        dims: the dimensions of the parameter; None: all.
    """
    keep = dims is not None
    radius = param.norm(2, dims, keep)
    new = param - update * (radius * lr / update.norm(2, dims, keep).clamp(min=1e-12))
    return new * (radius / new.norm(2, dims, keep).clamp(min=1e-12))


def moved(plan: Plan, h: Any, grad: Any, param: Any, state: Any, overwrite: bool = False) -> tuple[Any, ...]:
    """(new parameter, *new state) of one tensor, symbol or `TensorList`, all in the compute dtype, before rounding.

    Args:
        plan: the rule and the options.
        h: scalars by name.
        grad, param: tensors of one shape, in any floating dtype.
        state: the values of the rule's state, in any floating dtype. A new state of None means: as it was.
        overwrite: whether the new parameter may be written over `param`, a tensor.
    """
    weight, grad = entering(plan, h, grad, param)
    state = [s.to(plan.dtype) for s in state]
    update, *new_state = plan.rule.fn(grad, weight, *state, h)
    if plan.rule.returns_step_size:
        size, *new_state = new_state
    # A state that moves on to another's place must not be overwritten before it is read.
    new_state = [new.clone() if any(new is old for old in state) else new for new in new_state]
    if plan.caution:
        update = cautious(update, grad)
    if plan.sphere is not None:
        return (on_sphere(weight, update, h.hyperball, plan.sphere or None), *new_state)
    decays, after = plan.decay in DECOUPLED_PLACES, plan.decay is Decay.DECOUPLED_AFTER
    # Memory for one more large tensor costs more than the addition: the parameter's is used, and before a decay that
    # sees the old parameter the update's.
    overwrite = overwrite and weight is param and not plan.cautious_decay
    last = weight if overwrite and _free(weight, update, [grad, *state, *new_state]) else None
    first = update if last is not None and decays and not after else last
    if not plan.rule.returns_step_size:
        new = _added(weight, update, -h.lr, first)
    else:
        new = weight - update if first is None else torch.sub(weight, update, out=first)
    if decays:
        decayed = new if after else weight
        if plan.cautious_decay:
            decayed = torch.where(update * weight >= 0.0, decayed, 0.0)
        new = _added(new, decayed, -(size * h.weight_decay) if plan.rule.returns_step_size else -h.decay, last)
    return (new, *new_state)


def _added(x: Any, y: Any, factor: Any, out: Tensor | None) -> Any:
    """`add_scaled`, written to a tensor if there is one."""
    if out is None or isinstance(factor, Tensor):
        return add_scaled(x, y, factor)
    return torch.add(x, y, alpha=factor, out=out)


def _free(weight: Tensor, update: Tensor, others: Sequence[Tensor | None]) -> bool:
    """Whether parameter and update may be overwritten: both of one layout, and no other tensor in their memory."""
    if update.shape != weight.shape or update.stride() != weight.stride() or update.dtype != weight.dtype:
        return False
    mine = {tensor.untyped_storage()._cdata for tensor in (weight, update)}
    return len(mine) == 2 and mine.isdisjoint(t.untyped_storage()._cdata for t in others if t is not None)
