"""PCGrad: one gradient out of those of several losses, without the parts in which they conflict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hfoptim.engine.checks import choice, integer
from hfoptim.engine.distributed.dtensor import is_dtensor

_Gradient = list[Tensor | None]


def pc_backward(
    losses: Sequence[Tensor], params: Iterable[Tensor], reduction: str = "mean", *, step: int = 0, seed: int = 0
) -> None:
    """Write into `param.grad` the gradients of several losses, each projected off those that it conflicts with.

    With g_i the gradient of loss i over all parameters together, those before any projection on the right:

        for every i, for the others j in random order:  where <g_i, g_j> < 0:  g_i = g_i - <g_i, g_j> / |g_j|^2 g_j
        gradient = sum of g_i                           with reduction="mean", over their number

    In place of `loss.backward()`; then any optimizer takes its step. What was in `param.grad` is replaced. It holds the
    gradients of all losses at once. Parameters that not all losses depend on have the sum under "mean", too, as in
    pytorch_optimizer. Under DistributedDataParallel the gradients are this process's: average `param.grad` afterwards.

        pc_backward([loss_of_task_1, loss_of_task_2], model.parameters(), step=step)
        optimizer.step()

    Args:
        losses: tensors of one number, with a graph.
        params: the parameters; those that no loss depends on get None.
        reduction (default "mean"): "mean" or "sum".
        step (0): the number of the step, which decides the order together with `seed`: a resumed run repeats it.
        seed (0): of the order.

    Raises:
        ValueError: no losses, or an unknown reduction.
        TypeError: sharded parameters, whose parts know no inner products of the whole.

    Source:
        Yu et al., Gradient Surgery for Multi-Task Learning, arXiv 2001.06782; pytorch_optimizer 4.1, `PCGrad`, after
        WeiChengTseng/Pytorch-PCGrad.
    """
    choice("reduction", reduction, ("mean", "sum"))
    losses, params = list(losses), [param for param in params if param.requires_grad]
    if not losses:
        raise ValueError("losses is empty, expected one loss or more")
    if any(map(is_dtensor, params)):
        raise TypeError("pc_backward takes inner products of whole gradients, and not of sharded parameters")
    gradients: list[_Gradient] = [
        list(torch.autograd.grad(loss, params, retain_graph=number < len(losses), allow_unused=True))
        for number, loss in enumerate(losses, 1)
    ]
    generator = torch.Generator().manual_seed((integer("seed", seed, 0) << 32) + integer("step", step, 0))
    with torch.no_grad():
        projected = [
            _off(gradients, own, torch.randperm(len(losses), generator=generator).tolist())
            for own in range(len(losses))
        ]
        for index, param in enumerate(params):
            found = [part for part in (of_loss[index] for of_loss in projected) if part is not None]
            shared = reduction == "mean" and all(of_loss[index] is not None for of_loss in gradients)
            param.grad = torch.stack(found).sum(0).div_(len(losses) if shared else 1) if found else None


def _off(gradients: Sequence[_Gradient], own: int, order: Sequence[int]) -> _Gradient:
    """One gradient projected off the others, in an order."""
    found = [None if part is None else part.clone() for part in gradients[own]]
    for other in order:
        if other == own:
            continue
        product, square = _inner(found, gradients[other]), _inner(gradients[other], gradients[other])
        share = product.clamp(max=0.0) / square.clamp(min=torch.finfo(square.dtype).tiny)
        for index, part in enumerate(gradients[other]):
            if part is None:
                continue
            before = found[index]
            off = part * share.to(part.device, part.dtype)
            # One that has no gradient of this loss gets a part of the other's.
            found[index] = -off if before is None else before.sub_(off)
    return found


def _inner(one: _Gradient, other: _Gradient) -> Tensor:
    """The inner product, in single precision at least."""
    terms = [
        torch.sum(a * b, dtype=torch.promote_types(a.dtype, torch.float32))
        for a, b in zip(one, other, strict=True)
        if a is not None and b is not None
    ]
    return torch.stack([term.to(terms[0].device) for term in terms]).sum() if terms else torch.zeros(())
