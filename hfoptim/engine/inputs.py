"""What a step needs besides gradients: products of the Hessian with vectors, the loss's value, other parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfoptim.engine.bucket_step import BucketStep
from hfoptim.engine.distributed.dtensor import aligned, here, is_dtensor, local, whole_of
from hfoptim.engine.precision import precise
from hfoptim.engine.storage import exact_dtype


class Due(NamedTuple):
    """A parameter whose curvature is due: its group, itself, and its gradient with the graph."""

    group: Mapping[str, Any]
    param: Tensor
    grad: Tensor


@dataclass(frozen=True)
class Curvature:
    """A state that is computed before a step from all gradients and their graph. Declared on an optimizer's class.

    Gradients then need a graph, `loss.backward(create_graph=True)`; complex parameters, GradScaler and gradient release
    are refused. Sharded parameters are taken where their gradients have a graph: tensor parallelism gives one, FSDP2
    does not.

    Args:
        state: its name. The rules have it, too, kept exactly: `State(zeros.init)`.
        every: the option that says for how many steps of a parameter it is used.
        estimate: `(due, step) -> tensors`, one for each that is due; `step` counts those taken, so that random vectors
            can be drawn again after a checkpoint. Linear in the loss: estimates of micro-batches are added up.
        finish: `(due, tensors) -> tensors`, what is to be done with the sums; None: nothing.
    """

    state: str
    every: str
    estimate: Callable[[Sequence[Due], int], list[Tensor]]
    finish: Callable[[Sequence[Due], list[Tensor]], list[Tensor]] | None = None

    def is_due(self, param: Tensor, group: Mapping[str, Any], states: _States) -> bool:
        """Whether the next step of a parameter takes a new estimate."""
        return _steps_of(param, states) % int(group[self.every]) == 0

    def add(self, owner: str, entries: _Entries, groups: _Groups, states: _States, sums: dict[Tensor, Tensor]) -> None:
        """Add the estimates for a micro-batch, whose graph the gradients have, to those before, where any is due.

        Raises:
            TypeError: a parameter is complex, or sharded and its gradient has no graph.
        """
        due = self._due(owner, entries, groups, states)
        if not due:
            return
        for _, param, grad in due:
            if is_dtensor(param) and not grad.requires_grad:
                raise TypeError(
                    f"{owner} differentiates gradients, and that of a sharded parameter has no graph; FSDP2 makes "
                    f"none, tensor parallelism does, with loss.backward(create_graph=True)"
                )
        step = max(_steps_of(param, states) for _, param, _ in due)
        for (_, param, _), value in zip(due, self.estimate(due, step), strict=True):
            sums[param] = value if param not in sums else sums[param].add_(value)

    def prepare(
        self, owner: str, entries: _Entries, groups: _Groups, states: _States, sums: dict[Tensor, Tensor] | None
    ) -> None:
        """Write the state of the parameters for which it is due.

        Args:
            sums: what `add` has added up on this rank, of which the step takes the mean over all; None: the gradients
                have the graph of the whole step.

        Raises:
            TypeError: as from `add`; or there are sums over micro-batches of a parameter that is not sharded over all
                ranks.
        """
        due = self._due(owner, entries, groups, states)
        if not due:
            return
        if sums is None:
            sums = {}
            self.add(owner, entries, groups, states, sums)
            found = [sums[param] for _, param, _ in due]
        else:
            found = []
            for _, param, _ in due:
                none = torch.zeros_like(param, dtype=exact_dtype(param.dtype))
                found.append(_mean_of_curvature(owner, sums.get(param, none)))
        for (_, param, _), value in zip(due, self.finish(due, found) if self.finish else found, strict=True):
            states[param].setdefault(self.state, value).copy_(value)

    def _due(self, owner: str, entries: _Entries, groups: _Groups, states: _States) -> list[Due]:
        if any(param.is_complex() for _, param, _ in entries):
            raise TypeError(f"{owner} differentiates gradients, and does not take complex parameters")
        return [
            Due(groups[index], param, aligned(grad, param))
            for index, param, grad in entries
            if self.is_due(param, groups[index], states)
        ]


_Entries = Sequence[tuple[int, Tensor, Tensor]]
_Groups = Sequence[Mapping[str, Any]]
_States = MutableMapping[Tensor, dict[str, Any]]


def _mean_of_curvature(owner: str, value: Any) -> Any:
    """The mean over the ranks; all that share a sharded parameter have seen the same batches."""
    if not is_dtensor(value):
        return mean_over_ranks(value)
    ranks = torch.distributed.get_world_size()
    if value.device_mesh.size() < ranks:
        raise TypeError(
            f"{owner} adds up its curvature over micro-batches, and a parameter is sharded over "
            f"{value.device_mesh.size()} of {ranks} ranks, of which the others may have seen other batches; take steps "
            f"without add_curvature()"
        )
    return value


def _steps_of(param: Tensor, states: _States) -> int:
    return int(states[param].get("step", 0)) if param in states else 0


def meet_partners(work: Sequence[BucketStep], states: _States, partner_of: Callable[..., Tensor]) -> None:
    """Write the states that are made of other parameters, whose values are those before the step.

    Sharded parameters are gathered, on every rank.

    Args:
        work: the buckets of the step.
        states: the optimizer's.
        partner_of: `(parameter, group)` -> the other parameter.
    """
    for item in work:
        partner, bucket = item.bucket.plan.rule.partner, item.bucket
        if partner is None:
            continue
        others = [whole_of(partner_of(param, item.group).detach()) for param in item.params]
        alike: dict[torch.Size, list[int]] = {}
        for index, other in enumerate(others):
            alike.setdefault(other.shape, []).append(index)
        for indices in alike.values():
            values = torch.stack([others[i].to(bucket.device, bucket.plan.dtype) for i in indices])
            own = [[states[item.params[i]][name] for i in indices] for name in partner.states]
            made = partner.fn(values, *(torch.stack([whole_of(state) for state in column]) for column in own))
            for column, stack in zip(own, made, strict=True):
                for state, value in zip(column, stack, strict=True):
                    local(state).copy_(here(value, state))


def refuse_scaler(optimizer: Any, owner: str) -> None:
    """Raise a RuntimeError if GradScaler has made itself known, as it does to optimizers that can undo the scaling."""
    if optimizer.__dict__.pop("found_inf", None) is None:
        return
    optimizer.__dict__.pop("grad_scale", None)
    if optimizer.release is not None:
        raise RuntimeError(
            "GradScaler divides gradients by its scale in optimizer.step(), and gradient release has used them "
            "before; train in bfloat16, or without gradient release"
        )
    if optimizer.curvature is not None:
        raise RuntimeError(
            f"GradScaler scales the loss, and divides the gradients, but not the Hessian that {owner} takes from "
            f"their graph; train in bfloat16 or float32"
        )
    raise RuntimeError(
        f"GradScaler leaves out steps whose gradients overflow, and their losses would be added to that of the next, "
        f"which the step of {owner} depends on; train in bfloat16 or float32"
    )


def refuse_capture(params: Sequence[Tensor], owner: str) -> None:
    """Raise a RuntimeError if a CUDA graph is being captured, which would repeat the numbers of this one step."""
    if params and params[0].is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"a CUDA graph is being captured: it would repeat the learning rate and the count of this one step of "
            f"{owner}, which are worked out on the host; call step() outside of the graph"
        )


def as_loss(value: Any) -> Tensor:
    """A loss as a 0-d tensor, apart from its graph.

    Raises:
        TypeError: no number.
        ValueError: a tensor of more than one number.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"loss has the shape {tuple(value.shape)}, expected one number: the mean over the batch")
        return value.detach().reshape(())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"loss={value!r} is a {type(value).__name__}, expected a number or a tensor of one")
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean over the ranks: of their losses, that whose gradient data parallelism steps with."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = precise(value).clone()
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value
