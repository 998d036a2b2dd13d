"""What one step of an optimizer does, in numbers: norms of gradients, updates and weights, trust ratios, step sizes.

For any torch optimizer, with plain, replicated and sharded (DTensor) parameters. `hfoptim.trainer.OptimizerMonitor`
puts these numbers into the Trainer's log.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hfoptim.engine import RuleOptimizer, unwrap_all
from hfoptim.engine.checks import closest
from hfoptim.engine.distributed import dtensor
from hfoptim.engine.memory import flat
from hfoptim.engine.precision import widest
from hfoptim.engine.report import Report

# What is measured around a step, and what is read from the parameter groups.
MEASURED = ("grad_norm", "update_rms", "update_to_weight", "zero_updates", "lost_updates", "trust_ratio")
READ = ("lr", "d")
# What is watched at every step.
WATCHED = ("nonfinite_gradients",)
_OF_UPDATES = {"update_rms", "update_to_weight", "zero_updates", "lost_updates"}

# Entries that are computed with at once.
_PIECE = 1 << 22


def check_quantities(argument: str, given: Any, known: Sequence[str]) -> tuple[str, ...]:
    """The names of quantities, checked, in the order of `known`.

    Args:
        argument: the argument's name, for the message.
        given: True for all, a name, or several.
        known: all there are.

    Raises:
        ValueError: an unknown name (says the closest ones), or none.
        TypeError: neither True nor names.
    """
    if given is True:
        return tuple(known)
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Iterable) or isinstance(names, Mapping):
        raise TypeError(f"{argument}={given!r} is a {type(given).__name__}, expected True, a name or several names")
    names = list(names)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{argument} holds {name!r}, a {type(name).__name__}, expected names")
        if name not in known:
            raise ValueError(f"{argument}: there is no quantity {name!r}; {closest(name, known)}")
    if not names:
        raise ValueError(f"{argument}={given!r} asks for nothing; give True, or some of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def lacking(optimizer: Optimizer, quantities: Iterable[str]) -> dict[str, str]:
    """Which quantities an optimizer has not, each with the reason.

    Args:
        optimizer: the optimizer itself, without Accelerate's wrapper.
        quantities: of `MEASURED`, `READ` and `WATCHED`.
    """
    reasons = {}
    flattened = any(hasattr(p, "_fsdp_flattened") for group in optimizer.param_groups for p in group["params"])
    for name in quantities:
        seen = name in MEASURED or name in WATCHED
        if seen and any(group.get("gradient_release") for group in optimizer.param_groups):
            reasons[name] = "gradient_release=True takes the step inside of backward and frees the gradients"
        elif seen and flattened:
            reasons[name] = "FSDP1 has flattened the parameters, of which each process sees a part; use FSDP2"
        elif name == "trust_ratio" and not any(map(_reports, unwrap_all(optimizer, RuleOptimizer))):
            reasons[name] = f"{type(optimizer).__name__}, with these options, scales no tensor by one"
        elif name == "d" and not any("d" in group for group in optimizer.param_groups):
            reasons[name] = f"{type(optimizer).__name__} does not estimate its step size"
    return reasons


def _reports(optimizer: RuleOptimizer) -> bool:
    return any(
        optimizer.rule_for(param, group).report is not None
        for group in optimizer.param_groups
        for param in group["params"]
    )


# -- names -----------------------------------------------------------------------------------------------------------


def group_labels(groups: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """What the parameter groups that are not empty are called, by their index: their `name`, else `group_<index>`."""
    used = {index: group for index, group in enumerate(groups) if len(group["params"])}
    names = [group.get("name") for group in used.values()]
    return {
        index: name if isinstance(name := group.get("name"), str) and names.count(name) == 1 else f"group_{index}"
        for index, group in used.items()
    }


def by_group(quantity: str, values: Mapping[int, float], labels: Mapping[int, str]) -> dict[str, float]:
    """A quantity's values by key: `lr/<group>` for each group, plainly `lr` where there is one group."""
    alone = len(labels) == 1
    return {quantity if alone else f"{quantity}/{labels[index]}": value for index, value in values.items()}


# -- what groups hold ------------------------------------------------------------------------------------------------


def noted_rates(optimizer: Optimizer) -> list[Any]:
    """Each group's learning rate as it is, without waiting for a device; to be read before a schedule changes it.

    An optimizer that warms up by itself, as schedule-free ones do, says in `scheduled_lr` what it applies.
    """
    rates = [group.get("scheduled_lr", group.get("lr")) for group in optimizer.param_groups]
    return [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]


def read_groups(optimizer: Optimizer, rates: Sequence[Any], quantities: Iterable[str]) -> dict[str, float]:
    """Learning rates, and estimates of step sizes, after a step.

    Args:
        optimizer: the optimizer.
        rates: its `noted_rates`.
        quantities: those wanted.

    Returns:
        Numbers by key.
    """
    groups, values = optimizer.param_groups, dict[str, float]()
    labels = group_labels(groups)
    if "lr" in quantities:
        applied = {index: _applied(optimizer, groups[index], rates[index]) for index in labels}
        values |= by_group("lr", {index: float(rate) for index, rate in applied.items() if rate is not None}, labels)
    if "d" in quantities:
        found = {index: float(groups[index]["d"]) for index in labels if "d" in groups[index]}
        # One estimate for all groups, as Prodigy makes it, is one number.
        same = len(found) == len(labels) and len(set(found.values())) == 1
        values |= {"d": next(iter(found.values()))} if same else by_group("d", found, labels)
        values |= by_group("d_lr", {index: d * float(rates[index]) for index, d in found.items()}, labels)
    return values


def _applied(optimizer: Optimizer, group: dict[str, Any], rate: Any) -> Any:
    """The learning rate of a group; of one that sets it by itself (Adafactor), what it was."""
    if group.get("relative_step"):
        for inner in unwrap_all(optimizer, RuleOptimizer):
            for index, own in enumerate(inner.param_groups):
                if own is group and hasattr(inner, "applied_lr"):
                    return inner.applied_lr(index)
    return rate


# -- what is measured around a step ----------------------------------------------------------------------------------


class StepMeasurement:
    """Measures the next step of an optimizer.

        measurement = StepMeasurement(optimizer, ["grad_norm", "update_rms"])
        optimizer.step()
        measurement.values()        # {"grad_norm": ..., "grad_norm/group_0": ..., ...}

    For the update it copies the parameters, until the step has been taken, and subtracts in float32 (float64 for
    double precision). Sums go on in float64. Parameters sharded as DTensors are summed over the ranks, with one
    all-reduce for each kind of sharding, so every rank has to measure the same steps.

    Args:
        optimizer: any torch.optim.Optimizer, without Accelerate's wrapper.
        quantities: some of `MEASURED`.
    """

    def __init__(self, optimizer: Optimizer, quantities: Iterable[str]) -> None:
        self._quantities = frozenset(quantities)
        self._groups = optimizer.param_groups
        self._copies: dict[Tensor, Tensor] = {}
        self._sums: dict[dtensor.Groups, dict[str, Tensor]] = {}
        self._totals: dict[str, Tensor] | None = None
        self._reports: list[Report] = []
        self._inner = unwrap_all(optimizer, RuleOptimizer) if "trust_ratio" in self._quantities else []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def close(self) -> None:
        """Measure no more; also where no step was taken."""
        for hook in self._hooks:
            hook.remove()
        for inner in self._inner:
            inner.report = None
        self._hooks, self._inner = [], []
        self._copies.clear()

    def values(self) -> dict[str, float]:
        """The numbers by key, read from the device; none if no step was taken.

        The keys are `grad_norm`, `update_rms`, `update_to_weight`, `zero_updates`, `lost_updates`, each for all
        parameters and, where there are several groups, for each of them (`grad_norm/<group>`); `trust_ratio_min`,
        `trust_ratio_mean`, `trust_ratio_max`.
        """
        if self._totals is None:
            return {}
        sums = _read(self._totals)
        sizes = {index: sum(p.numel() for p in self._groups[index]["params"]) for index in range(len(self._groups))}
        labels = group_labels(self._groups)
        found: dict[str, float] = {}
        for name in (name for name in MEASURED if name != "trust_ratio"):
            if name not in self._quantities or not labels:
                continue
            every: dict[str, float | None] = {name: _result(name, sums, labels, sizes)}
            if len(labels) > 1:
                every |= {f"{name}/{label}": _result(name, sums, [index], sizes) for index, label in labels.items()}
            found |= {key: value for key, value in every.items() if value is not None}
        ratios = [numbers for report in self._reports for numbers in report.values.get("trust_ratio", ())]
        if ratios:
            ratio = torch.cat([numbers.double().cpu() for numbers in ratios])
            found |= {f"trust_ratio_{name}": float(getattr(ratio, name)()) for name in ("min", "mean", "max")}
        return found

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        self._sums, self._totals, self._reports = {}, None, []
        for index, param in self._params():
            if "grad_norm" in self._quantities:
                self._add("grad", index, param, _gradient(param))
            if "update_to_weight" in self._quantities:
                self._add("weight", index, param, _squares(_here(param)))
            if self._quantities & _OF_UPDATES:
                self._copies[param] = _here(param).clone()
        for inner in self._inner:
            inner.report = Report()

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        for index, param in self._params() if self._copies else ():
            here, copy = _here(param), self._copies.pop(param)
            if self._quantities & {"update_rms", "update_to_weight"}:
                self._add("update", index, param, _squares(here, copy))
            if self._quantities & {"zero_updates", "lost_updates"}:
                self._add_unmoved(index, param, here == copy)
        self._totals = dtensor.sum_over_ranks(self._sums)
        self._reports = [inner.report for inner in self._inner if inner.report is not None]
        self.close()

    def _add_unmoved(self, index: int, param: Tensor, same: Tensor) -> None:
        """Count the entries that a step has left as they were, all and those with a gradient."""
        grad = None if param.grad is None else dtensor.local(dtensor.aligned(param.grad.detach(), param))
        pushed = torch.zeros_like(same) if grad is None else (grad.to_dense() if grad.is_sparse else grad) != 0
        for name, found in (("same", same), ("pushed", pushed), ("lost", same & pushed)):
            self._add(name, index, param, found.sum(dtype=widest(same.device)))

    def _params(self) -> Iterator[tuple[int, Tensor]]:
        for index, group in enumerate(self._groups):
            for param in group["params"]:
                yield index, param

    def _add(self, name: str, index: int, param: Tensor, value: Tensor) -> None:
        sums = self._sums.setdefault(dtensor.groups_of(param), {})
        key = f"{name}/{index}"
        sums[key] = sums[key] + value.to(sums[key].device) if key in sums else value


def nonfinite(tensors: Sequence[Tensor]) -> list[Tensor]:
    """For each tensor, sparse or empty, too, whether it has infinite or undefined entries: 0-d, on its device."""
    dense = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors]
    filled = [tensor for tensor in dense if tensor.numel()]
    # The largest entry does not overflow, as a sum would.
    norms = iter(torch._foreach_norm(filled, math.inf) if filled else [])
    return [
        ~torch.isfinite(next(norms)) if each.numel() else torch.zeros((), dtype=torch.bool, device=each.device)
        for each in dense
    ]


class NonfiniteGradients:
    """Which parameters had gradients with infinite or undefined entries, over several steps; no step waits for it.

    Args:
        optimizer: any torch.optim.Optimizer, without Accelerate's wrapper.
        names: the names of its parameters, by their ids; others are called by group and place.
    """

    def __init__(self, optimizer: Optimizer, names: Mapping[int, str]) -> None:
        self._groups, self._names = optimizer.param_groups, names
        self._found: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def note(self) -> None:
        """Look at the gradients of the step to come."""
        params = [param for group in self._groups for param in group["params"] if param.grad is not None]
        grads = [dtensor.local(dtensor.aligned(param.grad.detach(), param)) for param in params]
        for param, bad in zip(params, nonfinite(grads), strict=True):
            self._found[param] = self._found[param] | bad if param in self._found else bad

    def take(self) -> list[str]:
        """The names of those parameters since the last time, read from the device, on every rank the same."""
        sums: dict[dtensor.Groups, dict[str, Tensor]] = {}
        for index, group in enumerate(self._groups):
            for position, param in enumerate(group["params"]):
                name = self._names.get(id(param), f"parameter {position} of group {index}")
                found = self._found.get(param, torch.zeros((), dtype=torch.bool, device=_here(param).device))
                sums.setdefault(dtensor.groups_of(param), {})[name] = found.to(widest(found.device))
        self._found.clear()
        return [name for name, count in _read(dtensor.sum_over_ranks(sums)).items() if count]


def _result(name: str, sums: Mapping[str, float], groups: Iterable[int], sizes: Mapping[int, int]) -> float | None:
    """A quantity of some groups, from the sums of squares; None where it is not defined."""

    def total(of: str) -> float:
        return sum(sums[f"{of}/{index}"] for index in groups)

    def root(of: str) -> float:
        return math.sqrt(total(of))

    groups = list(groups)
    if name == "zero_updates":
        return total("same") / sum(sizes[index] for index in groups)
    if name == "lost_updates":
        return total("lost") / total("pushed") if total("pushed") else None
    if name == "grad_norm":
        return root("grad")
    if name == "update_rms":
        return root("update") / math.sqrt(sum(sizes[index] for index in groups))
    return root("update") / root("weight") if root("weight") else None


def _read(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers of 0-d tensors, with one transfer."""
    if not totals:
        return {}
    device = next(iter(totals.values())).device
    return dict(zip(totals, torch.stack([value.to(device) for value in totals.values()]).tolist(), strict=True))


def _here(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this rank."""
    return dtensor.local(tensor.detach())


def _gradient(param: Tensor) -> Tensor:
    """The sum of the squares of a parameter's gradient on this rank; 0 without one, which other ranks may have."""
    if param.grad is None:
        return _squares(_here(param)[..., :0] if param.ndim else _here(param).new_zeros(0))
    grad = dtensor.local(dtensor.aligned(param.grad.detach(), param))
    return _squares(grad.coalesce().values() if grad.is_sparse else grad)


def _squares(tensor: Tensor, other: Tensor | None = None) -> Tensor:
    """The sum of the squares of a tensor, or of the difference from another one, piece by piece.

    Not torch's norm: in float32 on a CPU that is off by 1e-4 for 4 million entries and by 1e-2 for 100 million.
    """
    tensors = [tensor] if other is None else [tensor, other]
    if tensor.is_complex():
        tensors = [torch.view_as_real(t) for t in tensors]
    dtype = torch.float64 if tensors[0].dtype is torch.float64 else torch.float32
    views = flat(tensors)
    columns = [view.split(_PIECE) for view in views] if views is not None else [[t] for t in tensors]
    total = torch.zeros((), dtype=widest(tensor.device), device=tensor.device)
    for own, *others in zip(*columns, strict=True):
        piece = own.to(dtype)
        for each in others:
            piece = piece - each.to(dtype)
        total += piece.square().sum()
    return total
