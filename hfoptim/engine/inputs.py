"""What a step needs besides gradients: products of the Hessian with vectors, the value of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfoptim.engine.distributed.dtensor import is_dtensor
from hfoptim.engine.precision import precise


class Due(NamedTuple):
    """A parameter whose curvature is due: its group, itself, and its gradient with the graph."""

    group: Mapping[str, Any]
    param: Tensor
    grad: Tensor


@dataclass(frozen=True)
class Curvature:
    """A state that is computed before a step from all gradients and their graph. Declared on an optimizer's class.

    Gradients then need a graph, `loss.backward(create_graph=True)`; sharded and complex parameters, GradScaler and
    gradient release are refused.

    Args:
        state: its name. The rules have it, too, kept exactly: `State(zeros.init)`.
        every: the option that says for how many steps of a parameter it is used.
        estimate: `(due, step) -> tensors`, one for each that is due; `step` counts those taken, so that random vectors
            can be drawn again after a checkpoint.
    """

    state: str
    every: str
    estimate: Callable[[Sequence[Due], int], Sequence[Tensor]]

    def prepare(
        self,
        owner: str,
        entries: Sequence[tuple[int, Tensor, Tensor]],
        groups: Sequence[Mapping[str, Any]],
        states: MutableMapping[Tensor, dict[str, Any]],
    ) -> None:
        """Write the state of the parameters for which it is due.

        Raises:
            TypeError: a parameter is sharded or complex.
        """
        for _, param, _ in entries:
            if param.is_complex() or is_dtensor(param):
                kind = "complex" if param.is_complex() else "sharded"
                raise TypeError(f"{owner} differentiates gradients, and does not take {kind} parameters")
        counts = {param: int(states[param].get("step", 0)) for _, param, _ in entries if states.get(param)}
        due = [
            Due(groups[index], param, grad)
            for index, param, grad in entries
            if counts.get(param, 0) % groups[index][self.every] == 0
        ]
        if not due:
            return
        found = self.estimate(due, max(counts.values(), default=0))
        for (_, param, _), value in zip(due, found, strict=True):
            states[param].setdefault(self.state, value).copy_(value)


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
    """A loss as a 0-d tensor in double precision, apart from its graph.

    Raises:
        TypeError: no number.
        ValueError: a tensor of more than one number.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"loss has the shape {tuple(value.shape)}, expected one number: the mean over the batch")
        return precise(value.detach()).reshape(())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"loss={value!r} is a {type(value).__name__}, expected a number or a tensor of one")
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def mean_over_ranks(loss: Tensor) -> Tensor:
    """The mean of the ranks' losses, whose gradient is what data parallelism steps with."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        loss = loss.clone()
        torch.distributed.all_reduce(loss)
        loss /= torch.distributed.get_world_size()
    return loss
