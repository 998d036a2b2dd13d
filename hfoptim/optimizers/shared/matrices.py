"""What the optimizers of matrices share: which parameters are matrices, in what form, and who takes the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfoptim.engine import ELEMENT, Group, Rule, RuleOptimizer, Scalars, hyper, original_shape
from hfoptim.engine.checks import entries, integer
from hfoptim.optimizers.shared.moments import adam_state, moments_step, nesterov_moments_step, one_ahead
from hfoptim.param_groups.logical_matrices import is_fused_qkv
from hfoptim.param_groups.selection import why_not_hidden


class Form(NamedTuple):
    """How a parameter is matrices.

    Args:
        flattened: what lies behind the first dimension counts as one.
        parts: sizes of the parts that are matrices of their own; none for the whole.
        dim: which side is divided, -2 for the rows and -1 for the columns.
        repeats: how often the parts follow one another. Equal parts of all repeats are one matrix.
    """

    flattened: bool = False
    parts: tuple[int, ...] = ()
    dim: int = -2
    repeats: int = 1

    def all(self, function: Callable[[Sequence[Tensor]], Sequence[Tensor]], matrices: Sequence[Tensor]) -> list[Tensor]:
        """A function of the parts of several, put together again."""
        done, count = function([part for matrix in matrices for part in self.cut(matrix)]), len(self.parts) or 1
        return [self.joined(done[i : i + count]) for i in range(0, len(done), count)]

    def cut(self, matrix: Tensor) -> Sequence[Tensor]:
        """The parts of one; itself where it is whole."""
        if not self.parts:
            return [matrix]
        if self.repeats == 1:
            return torch.split(matrix, list(self.parts), self.dim)
        repeats = matrix.unflatten(self.dim, (self.repeats, sum(self.parts)))
        return [part.flatten(self.dim - 1, self.dim) for part in repeats.split(self.parts, self.dim)]

    def views(self, matrix: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
        """The parts of one as views, equal ones in one, and the dimensions of each that together are a matrix."""
        if not self.parts:
            return [(matrix, (-2, -1))]
        divided = matrix.unflatten(self.dim, (self.repeats, sum(self.parts)))
        if len(set(self.parts)) > 1:
            return [(part, (-3, -2, -1)) for part in divided.split(self.parts, self.dim)]
        equal = divided.unflatten(self.dim, (len(self.parts), self.parts[0]))
        return [(equal, (-4, -3, -1) if self.dim == -1 else (-4, -2, -1))]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """What was cut."""
        if not self.parts:
            (whole,) = parts
            return whole
        if self.repeats == 1:
            return torch.cat(list(parts), self.dim)
        sizes = zip(parts, self.parts, strict=True)
        repeats = [part.unflatten(self.dim, (self.repeats, size)) for part, size in sizes]
        return torch.cat(repeats, self.dim).flatten(self.dim - 1, self.dim)

    def sides(self, rows: int, columns: int) -> list[tuple[int, int]]:
        """Those of every part of a matrix."""
        lengths = [part * self.repeats for part in self.parts]
        if not self.parts:
            return [(rows, columns)]
        return [(length, columns) if self.dim == -2 else (rows, length) for length in lengths]

    @property
    def shape(self) -> Callable[[torch.Size], tuple[int, ...]] | None:
        return as_matrix if self.flattened else None


def as_matrix(shape: torch.Size) -> tuple[int, ...]:
    """The shape as that of a matrix: what lies behind the first dimension counts as one."""
    return shape[0], math.prod(shape[1:])


@cache
def form_of(
    name: str | None,
    shape: torch.Size,
    use_muon: bool | None = True,
    stacked: bool | None = None,
    split: Any = None,
    split_dim: int | None = None,
) -> Form | None:
    """How a parameter of that name and shape is matrices; None for what is no hidden matrix.

    Args:
        name: its name, if it has one.
        shape: its shape.
        use_muon, stacked, split, split_dim: the options of its group.

    Raises:
        ValueError: it is to be a matrix, and has less than two dimensions; or `split` does not divide it.
    """
    if use_muon is None:
        use_muon = len(shape) >= 2 if name is None else why_not_hidden(name, shape) is None
    if not use_muon:
        return None
    if len(shape) < 2:
        raise ValueError(f"use_muon=True for {name or 'a parameter'} of shape {tuple(shape)}, which is no matrix")
    if stacked is None:
        stacked = name is not None and "expert" in name.lower()
    flattened = len(shape) > 2 and not stacked
    rows, columns = as_matrix(shape) if flattened else shape[-2:]
    if split is None:
        split = 3 if name is not None and is_fused_qkv(name, rows, columns) else 1
    sides = {-2: rows, -1: columns}
    dim = split_dim or (-1 if columns > rows else -2)
    if isinstance(split, tuple) and split_dim is None:
        dim = next((each for each, length in sides.items() if length == sum(split)), dim)
    parts = split if isinstance(split, tuple) else (sides[dim] // split,) * split
    period = sum(parts)
    if period == 0 or sides[dim] % period:
        raise ValueError(f"split={split!r} does not divide {name or 'a parameter'} of shape {tuple(shape)}")
    return Form(flattened, parts, dim, sides[dim] // period) if len(parts) > 1 else Form(flattened)


def matrices_of(form: Form, shape: torch.Size) -> str:
    """Which matrices a parameter of that form and shape is, in words."""
    shape = torch.Size(as_matrix(shape)) if form.flattened else shape
    stack, sides = math.prod(shape[:-2]), form.sides(*shape[-2:])
    counts = {f"{rows}x{columns}": sides.count((rows, columns)) * stack for rows, columns in sides}
    return " and ".join(f"matrix {s}" if n == 1 else f"{n} matrices {s}" for s, n in counts.items())


def _fallback_rates(t: int, group: Group) -> Scalars:
    # Where a matrix's rule has another use for the name.
    eps = group.get("adam_eps", group["eps"])
    scalars, scale = one_ahead(t, {**group, "eps": eps}), group["fallback_lr_scale"]
    return {**scalars, "lr": scalars["lr"] * scale, "decay": float(group["lr"]) * scale * group["weight_decay"]}


# What takes the parameters that are no hidden matrices.
FALLBACKS = {
    name: Rule(fn, ELEMENT, adam_state(amsgrad=False), _fallback_rates)
    for name, fn in (("adamw", moments_step), ("nadamw", nesterov_moments_step))
}


def _parts(name: str, value: Any) -> Any:
    """`split` as it lies in a group: a number of parts, their sizes, or None."""
    if value is None:
        return None
    sizes = entries(value)
    return integer(name, value, 1) if sizes is None else tuple(integer(name, size, 1) for size in sizes)


class HiddenMatrices(RuleOptimizer):
    """An optimizer that treats the matrices inside a network unlike everything else.

    They are found by name, or by a group's `use_muon`.
    """

    hidden_matrices = True
    _: KW_ONLY
    use_muon: bool | None = hyper(
        None,
        "whether a group's parameters are hidden matrices; None decides by their names and shapes",
        in_peers=False,
    )
    stacked: bool | None = hyper(
        None,
        "whether parameters of three dimensions are stacks of matrices rather than kernels; None: where the name says "
        '"expert"',
        in_peers=False,
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        found = (self._form_of(param, group) for group in self.param_groups for param in group["params"])
        if self.wants_matrices and not any(found):
            raise ValueError(self._nothing_to_take())

    @property
    def rest(self) -> str:
        """What everything else gets, for messages."""
        raise NotImplementedError

    @property
    def wants_matrices(self) -> bool:
        """Whether it is a mistake if there are none."""
        return True

    def chosen_by_name(self, group: Group) -> bool:
        """Whether a group's matrices are found by the names and shapes of its parameters."""
        return group["use_muon"] is None

    def _nothing_to_take(self) -> str:
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        adapters = [name for name in names if "lora_" in name.lower()]
        count = sum(len(group["params"]) for group in self.param_groups)
        found = f"none of the {count} parameters is a matrix inside a network, all would get {self.rest}"
        if adapters:
            return (
                f"{found}. {adapters[0]} and its like are factors of a low-rank update, of which not each by itself "
                f"but the product is a matrix inside the network; use_muon=True takes them for matrices nevertheless"
            )
        return f"{found}; give the names of the whole model's parameters, or use_muon=True in the group of its matrices"

    def check_added(self, group: dict[str, Any]) -> None:
        for param in group["params"]:
            self._form_of(param, group)
        unknown = [each for each in self.param_groups if self.chosen_by_name(each) and "param_names" not in each]
        if len({len(original_shape(param)) >= 2 for each in unknown for param in each["params"]}) == 2:
            raise ValueError(
                f"{type(self).__name__} cannot tell embeddings and heads from the matrices inside the network: the "
                f"parameters have no names. Give model.named_parameters(), or hfoptim.param_groups_muon(model), or "
                f"groups with use_muon=True and use_muon=False"
            )

    def _form_of(self, param: Tensor, group: Group) -> Form | None:
        name, shape = self.name_of(param, group), original_shape(param)
        return form_of(name, shape, group["use_muon"], group["stacked"], split=1)


class DividedMatrices(HiddenMatrices):
    """One that takes the matrices that a parameter holds one by one."""

    _: KW_ONLY
    split: Any = hyper(
        None,
        "into what a matrix is divided: a number of equal parts, or the sizes of the parts, which repeat where they "
        "add up to a fraction of the side (equal parts of all repeats are one matrix); 1 for no division. None: three "
        "parts where the name says so (`c_attn`, `qkv`, `in_proj_weight`) and the longer side is three times the other",
        check=_parts,
        in_peers=False,
    )
    split_dim: int | None = hyper(
        None,
        "which side is divided, -2 (rows) or -1 (columns). None: the longer one, or that which sizes add up to",
        low=-2,
        most=-1,
        in_peers=False,
    )

    def _form_of(self, param: Tensor, group: Group) -> Form | None:
        name, shape = self.name_of(param, group), original_shape(param)
        return form_of(name, shape, group["use_muon"], group["stacked"], group["split"], group["split_dim"])


class WithFallback(HiddenMatrices):
    """A rule for the matrices inside a network, AdamW or NAdamW for everything else, in one optimizer.

    Subclasses give `matrix_rule`.
    """

    _: KW_ONLY
    betas: tuple[float, float] = hyper((0.9, 0.95), "AdamW's decay rates", in_peers=False)
    fallback: str = hyper(
        "adamw",
        'what takes everything else; "nadamw" has Nesterov\'s momentum in it',
        choices=FALLBACKS,
        in_peers=False,
    )
    fallback_lr_scale: float = hyper(1.0, "the factor f of lr for everything else", in_peers=False)

    @property
    def rest(self) -> str:
        fallback: str = self.defaults["fallback"]
        return fallback

    def matrix_rule(self, form: Form, group: dict[str, Any]) -> Rule:
        """The rule for a hidden matrix of that form."""
        raise NotImplementedError

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        form = self._form_of(param, group)
        return FALLBACKS[group["fallback"]] if form is None else self.matrix_rule(form, group)

    def taken_by(self, param: Tensor, group: dict[str, Any]) -> str:
        form = self._form_of(param, group)
        return str(group["fallback"]) if form is None else matrices_of(form, param.shape)


class MatrixOptimizer(WithFallback, DividedMatrices):
    """One that takes the matrices that a parameter holds one by one, and has a rule for everything else."""
