"""What becomes of every parameter of a model: group, rule, learning rate and weight decay, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from hfoptim.engine import RuleOptimizer, unwrap_all
from hfoptim.factory.create import create_optimizer_v2
from hfoptim.optimizers.shared.matrices import HiddenMatrices
from hfoptim.param_groups.selection import reasons_against
from hfoptim.registry.lookup import canonical_name

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class ParamPlacement(NamedTuple):
    """What becomes of one parameter.

    Args:
        name: its name in the model.
        shape: its shape.
        group: the index of its group, None where it is in none.
        taken_by: the optimizer that steps it, by its name or class, and by which of its rules; "frozen", or "nothing".
        lr: its group's learning rate, None where there is none.
        weight_decay: its group's.
        why: why it is no matrix inside the network, for optimizers to which that matters; else empty.
    """

    name: str
    shape: tuple[int, ...]
    group: int | None
    taken_by: str
    lr: float | None
    weight_decay: float | None
    why: str


class ParamPlacements(tuple[ParamPlacement, ...]):
    """What becomes of all parameters of a model. As text, a table in which like layers are one row."""

    __slots__ = ()

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows: parameters of like layers together, with how many they are."""
        counts: dict[tuple[str, ...], int] = {}
        for each in self:
            numbers = ["" if number is None else f"{number:g}" for number in (each.lr, each.weight_decay)]
            group = "" if each.group is None else str(each.group)
            shape = "x".join(map(str, each.shape)) or "number"
            row = (_NUMBER.sub("*", each.name), shape, group, each.taken_by, *numbers, each.why)
            counts[row] = counts.get(row, 0) + 1
        return [(name, "" if count == 1 else str(count), *rest) for (name, *rest), count in counts.items()]

    def __str__(self) -> str:
        lines = [TITLES, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        cells = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join(line.rstrip() for line in cells)


TITLES = ("parameter", "times", "shape", "group", "taken by", "lr", "weight decay", "no hidden matrix because")


def describe_param_groups(model: nn.Module, opt: str | Optimizer, **options: Any) -> ParamPlacements:
    """Say which parameter of a model gets which rule, learning rate and weight decay, and why.

    Args:
        model: the model, also one on the device "meta".
        opt: the name of an optimizer, or one that has been made for the model.
        **options: those of `create_optimizer_v2`, for a name.

    Returns:
        A `ParamPlacement` for every parameter, in the model's order; frozen ones, and those that no group has, too.

    Raises:
        ValueError, TypeError: as `create_optimizer_v2`.
    """
    if isinstance(opt, Optimizer):
        if options:
            raise TypeError(f"options ({', '.join(options)}) are of no use to an optimizer that has been made already")
        optimizer = opt
    else:
        optimizer = create_optimizer_v2(model, opt, **options)
    # A name says more than a class, which may be that of several names.
    alone = isinstance(opt, str) and not options.get("param_options")
    inner = unwrap_all(optimizer, RuleOptimizer) or [optimizer]
    told = any(isinstance(each, HiddenMatrices) for each in inner)
    against = reasons_against(model) if told else {}
    taken = {
        id(param): (taken_by, group)
        for each in inner
        for param, taken_by, group in _taken(each, canonical_name(str(opt)) if alone else type(each).__name__)
    }
    groups = {id(param): index for index, group in enumerate(optimizer.param_groups) for param in group["params"]}
    return ParamPlacements(
        _placement(name, param, groups.get(id(param)), taken.get(id(param)), against.get(name, ""))
        for name, param in model.named_parameters()
    )


def _taken(optimizer: Optimizer, name: str) -> Iterator[tuple[Tensor, str, dict[str, Any]]]:
    """The parameters of an optimizer, with what takes them and their groups."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            by = optimizer.taken_by(param, group) if isinstance(optimizer, RuleOptimizer) else ""
            yield param, f"{name}: {by}" if by else name, group


def _placement(
    name: str, param: Tensor, index: int | None, taken: tuple[str, dict[str, Any]] | None, against: str
) -> ParamPlacement:
    shape = tuple(param.shape)
    if taken is None:
        return ParamPlacement(name, shape, None, "nothing" if param.requires_grad else "frozen", None, None, "")
    by, group = taken
    if group.get("use_muon") is not None and group["use_muon"] == bool(against):
        against = f"use_muon={group['use_muon']}"  # somebody said so, against what the name and the model say
    lr, decay = (None if group.get(key) is None else float(group[key]) for key in ("lr", "weight_decay"))
    return ParamPlacement(name, shape, index, by, lr, decay, against)
