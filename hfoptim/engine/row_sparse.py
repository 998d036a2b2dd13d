"""Steps with sparse gradients: of the entries that a gradient has, and of no others.

These rows of the parameter and of its state are gathered, stepped like small dense tensors, and put back: a step costs
what the batch has looked up, however large the table is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hfoptim.engine.bucket import Bucket
from hfoptim.engine.checks import parameter_name
from hfoptim.engine.distributed.dtensor import is_dtensor
from hfoptim.engine.plan import Decay, Plan
from hfoptim.engine.rule import Group
from hfoptim.engine.storage import matrix_shape

# Options that make a step of one row depend on others.
_REDUCING = ("caution", "gradient_centralization", "adaptive_clip", "orthograd", "hyperball")


def check(owner: str, called: str, plan: Plan, param: Tensor, grad: Tensor, group: Group) -> None:
    """Raise a TypeError if a sparse gradient is not taken.

    Args:
        owner: the optimizer, for messages.
        called: what they call the parameter.
        plan: of the parameter's step.
        param, grad: the parameter and its gradient.
        group: its group.
    """
    why = _objection(plan, param, grad, group)
    if why is not None:
        raise TypeError(f"{called} has a sparse gradient ({grad.layout}), which {owner} does not take{why}")


def refuse_dense(owner: str, entries: Sequence[tuple[int, Tensor, Tensor]], groups: Sequence[Group]) -> None:
    """Raise a TypeError if one of the gradients, of an optimizer that takes sparse ones only, is dense."""
    for index, param, grad in entries:
        if grad.layout is torch.strided:
            position = next(i for i, each in enumerate(groups[index]["params"]) if each is param)
            raise TypeError(
                f"{parameter_name(groups[index], index, position)} has a dense gradient, and {owner} takes sparse ones "
                f"only (nn.Embedding(..., sparse=True)); give the parameter to another optimizer, adam for example "
                f"(hfoptim.CombinedOptimizer makes one of both)"
            )


def _objection(plan: Plan, param: Tensor, grad: Tensor, group: Group) -> str | None:
    if not plan.rule.sparse:
        return (
            "; sparse_adam does, and adagrad and sgd with momentum=0, both without weight decay. Or use a dense one "
            "(nn.Embedding(..., sparse=False))"
        )
    if is_dtensor(param) or param.is_complex():
        return f" for a {'complex' if param.is_complex() else 'sharded'} parameter; use a dense one"
    if plan.decay is not Decay.NONE:
        return f" with weight_decay={group['weight_decay']}, which moves every row; set it to 0"
    if plan.reduces:
        chosen = next(name for name in _REDUCING if group[name])
        return f" with {chosen}={group[chosen]!r}, which looks at the whole parameter; leave that out"
    if any(kept.bits for kept in plan.storage) and (grad.sparse_dim() > 1 or matrix_shape(param.shape)[0] == 1):
        return (
            f" with state_dtype={group['state_dtype']!r} for the shape {tuple(param.shape)}, whose blocks go across "
            f"rows; keep its state in float32 or bfloat16"
        )
    return None


@contextmanager
def gathered(bucket: Bucket) -> Iterator[Bucket]:
    """The bucket with the rows that its sparse gradients have, as copies that are written back."""
    chosen = []
    for index, row in enumerate(bucket.rows):
        # The step is not linear in the gradient: a row that was looked up twice steps once, by the sum.
        grad = row.grad.coalesce()
        if grad.values().numel():
            where = grad.indices().unbind()
            param, *kept = (_taken(tensor, where) for tensor in row.written)
            taken = bucket.plan.slots([param, grad.values().reshape(param.shape), *kept])
            chosen.append((index, row, where, taken))
    seeds = [bucket.seeds[index] for index, *_ in chosen] if bucket.seeds else []
    yield Bucket(bucket.plan, [taken for *_, taken in chosen], bucket.scalars, seeds)
    for _, row, where, taken in chosen:
        for tensor, stepped in zip(row.written, taken.written, strict=True):
            tensor[where] = stepped


def _taken(tensor: Tensor, where: tuple[Tensor, ...]) -> Tensor:
    # On a CPU a sixth of the time that indexing takes.
    return tensor.index_select(0, where[0]) if len(where) == 1 else tensor[where]
