"""Sharpness-aware minimization: gradients from the worst point near the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from hfoptim.engine.checks import flag, number
from hfoptim.engine.distributed.dtensor import Groups, aligned, groups_of, local, sum_over_ranks
from hfoptim.wrappers.named import optimizer_named
from hfoptim.wrappers.two_points import TwoPoints

TINY = 1e-12


class SAM(TwoPoints):
    """Steps an optimizer with the gradient from the point where the loss nearby is about the worst.

    With p the parameters and g the gradient there, both over all parameters together:

        p' = p + rho g / |g|                 with adaptive, T = |p|:  p' = p + rho T^2 g / |T g|
        p  = step of the base optimizer from p with the gradient at p'

    Two gradients per step. Either by hand

        loss(model, batch).backward();  optimizer.first_step(zero_grad=True)
        loss(model, batch).backward();  optimizer.second_step(zero_grad=True)

    or by `optimizer.step(closure)`, with a closure that computes the loss of the step's batch, calls backward and
    returns the loss. If gradients are there already, they are the first ones and the closure computes the second. If
    there are none, or only those that the last step has used, the closure computes both: so torch's loops work, whose
    closures begin with `zero_grad()`, and Lightning's automatic optimization. The weights are set back to the saved p,
    bit for bit, also if the closure raises.

    The wrapper and the base optimizer share parameter groups, state and defaults; `rho` and `adaptive` lie in the
    groups, where they may differ and be changed. With `maximize`, the worst point is where the objective is lowest.
    bfloat16 parameters are too coarse for most of the small perturbation: keep float32 ones and use autocast.
    torch.amp.GradScaler cannot be used, it unscales one gradient per step.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups; with a `base_optimizer` that has
            been made already, the same parameters or None.
        base_optimizer: class of the base optimizer, one of the names of `hfoptim.list_optimizers()`, or an optimizer.
        rho (default 0.05): radius of the neighbourhood, >= 0.
        adaptive (False): scale the neighbourhood by the size of each weight (ASAM).
        **options: of the base optimizer.

    Raises:
        TypeError: `base_optimizer` is none of the three, or an option of the wrong type.
        ValueError: an option out of range, an unknown name, or `params` are not those of the optimizer given.
            From `step`: without a closure.
        RuntimeError: from the steps: no parameter has a gradient, they are taken in the wrong order, or Lightning
            accumulates gradients over batches.

    Source:
        Foret et al., arXiv 2010.01412; adaptive: Kwon et al., arXiv 2102.11600; davda54/sam, which
        pytorch_optimizer follows (there the options `use_gc` and `perturb_eps` are extra).
    """

    by_name = {"rho": 0.05, "adaptive": False}

    def __init__(
        self,
        params: ParamsT | None,
        base_optimizer: type[Optimizer] | str | Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(made(params, base_optimizer, options), {"rho": rho, "adaptive": adaptive})

    @property
    def base_optimizer(self) -> Optimizer:
        """The optimizer that takes the steps."""
        return self._inner

    def check_group(self, group: dict[str, Any]) -> None:
        group["rho"] = number("rho", group["rho"])
        flag("adaptive", group["adaptive"])

    def move(self) -> None:
        norm = self.sums(norm=_sized)["norm"].sqrt()
        for group in self.param_groups:
            sign = -1.0 if group.get("maximize") else 1.0
            scale = sign * float(group["rho"]) / (norm + TINY)
            for param in group["params"]:
                if param.grad is not None:
                    self.keep_weight(param)
                    weight, grad = local(param), local(aligned(param.grad, param))
                    direction = weight.abs().square() * grad if group["adaptive"] else grad
                    weight.add_(direction * scale.to(weight.device))

    def sums(self, **of: Callable[[Tensor, dict[str, Any]], Tensor]) -> dict[str, Tensor]:
        """Sums over all parameters with gradients and over all ranks, as tensors: nothing waits for the device.

        Args:
            **of: by name, the term of a parameter, from it and its group.

        Raises:
            RuntimeError: no parameter has a gradient.
        """
        parts: dict[Groups, dict[str, list[Tensor]]] = {}
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    terms = parts.setdefault(groups_of(param), {name: [] for name in of})
                    for name, term in of.items():
                        terms[name].append(term(param, group))
        if not parts:
            raise RuntimeError(
                "SAM starts from gradients, and no parameter has one; call loss.backward() before, or in the closure"
            )
        return sum_over_ranks(
            {
                groups: {name: torch.stack([t.to(found[0].device) for t in found]).sum() for name, found in own.items()}
                for groups, own in parts.items()
            }
        )


def square(tensor: Any) -> Tensor:
    """The sum of the squares of this rank's entries, in single precision at least."""
    own = local(tensor)
    norm: Tensor = torch.linalg.vector_norm(own, dtype=torch.promote_types(own.dtype, torch.float32))
    return norm.square()


def _sized(param: Tensor, group: dict[str, Any]) -> Tensor:
    """What of a parameter is in the norm that the way up is divided by."""
    grad = local(aligned(param.grad, param))
    return square(grad * local(param).abs() if group["adaptive"] else grad)


def made(params: Any, base: Any, options: dict[str, Any]) -> Any:
    """The base optimizer over the parameters."""
    if isinstance(base, Optimizer):
        if options:
            raise TypeError(f"options ({', '.join(options)}) are of no use to an optimizer that has been made already")
        if params is not None and {*map(id, _tensors(params))} != {*map(id, _tensors(base.param_groups))}:
            raise ValueError(
                f"params are not the parameters of the {type(base).__name__} given; give None, or the same"
            )
        return base
    if isinstance(base, str):
        return optimizer_named(base, params, options)
    if not callable(base):
        raise TypeError(f"base_optimizer={base!r} is no optimizer; give a class, a name such as 'sgd', or an optimizer")
    return base(params, **options)


def _tensors(params: Iterable[Any]) -> Iterator[Tensor]:
    """The parameters themselves, whether given plainly, with names or in groups."""
    for entry in params:
        if isinstance(entry, dict):
            yield from _tensors([entry["params"]] if isinstance(entry["params"], Tensor) else entry["params"])
        else:
            yield entry[1] if isinstance(entry, tuple) else entry
