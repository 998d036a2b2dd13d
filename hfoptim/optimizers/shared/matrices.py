"""What the optimizers of matrices share: which parameters are matrices, in what form, and who takes the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfoptim.engine import ELEMENT, Group, Rule, RuleOptimizer, Scalars, hyper
from hfoptim.engine.checks import entries, integer
from hfoptim.engine.parameter_names import bare
from hfoptim.optimizers.shared.moments import adam_state, moments_step, nesterov_moments_step, one_ahead
from hfoptim.param_groups.selection import is_hidden_matrix

# Names of matrices that make queries, keys and values at once, one after the other.
_FUSED_QKV = re.compile(r"(^|[._])(c_attn|w?qkv|in_proj_weight)([._]|$)", re.IGNORECASE)


class Form(NamedTuple):
    """How a parameter is matrices.

    Args:
        flattened: what lies behind the first dimension counts as one.
        parts: sizes of the parts that are matrices of their own; none for the whole.
        across: whether the parts lie beside each other, in columns, not below each other.
    """

    flattened: bool = False
    parts: tuple[int, ...] = ()
    across: bool = False

    def each(self, function: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
        """A function of every part, put together again."""
        return self.all(lambda parts: [function(part) for part in parts], [matrix])[0]

    def all(self, function: Callable[[Sequence[Tensor]], Sequence[Tensor]], matrices: Sequence[Tensor]) -> list[Tensor]:
        """A function of the parts of several, put together again."""
        if not self.parts:
            return list(function(matrices))
        dim, count = -1 if self.across else -2, len(self.parts)
        done = function([part for matrix in matrices for part in matrix.split(self.parts, dim)])
        return [torch.cat(list(done[i : i + count]), dim) for i in range(0, len(done), count)]

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
    qkv_split: Any = None,
) -> Form | None:
    """How a parameter of that name and shape is matrices; None for what is no hidden matrix.

    Args:
        name: its name, if it has one.
        shape: its shape.
        use_muon, stacked, qkv_split: the options of its group.

    Raises:
        ValueError: it is to be a matrix, and has less than two dimensions; or `qkv_split` does not divide it.
    """
    if use_muon is None:
        use_muon = len(shape) >= 2 if name is None else is_hidden_matrix(name, shape)
    if not use_muon:
        return None
    if len(shape) < 2:
        raise ValueError(f"use_muon=True for {name or 'a parameter'} of shape {tuple(shape)}, which is no matrix")
    if stacked is None:
        stacked = name is not None and "expert" in name.lower()
    flattened = len(shape) > 2 and not stacked
    rows, columns = as_matrix(shape) if flattened else shape[-2:]
    if qkv_split is None:
        fused = name is not None and _FUSED_QKV.search(bare(name)) and max(rows, columns) == 3 * min(rows, columns)
        qkv_split = 3 if fused else 1
    if isinstance(qkv_split, tuple):
        parts, across = qkv_split, sum(qkv_split) != rows
    else:
        parts, across = (max(rows, columns) // qkv_split,) * qkv_split, columns > rows
    if sum(parts) != (columns if across else rows):
        raise ValueError(f"qkv_split={qkv_split!r} does not divide {name or 'a parameter'} of shape {tuple(shape)}")
    return Form(flattened, parts, across) if len(parts) > 1 else Form(flattened)


def _fallback_rates(t: int, group: Group) -> Scalars:
    scalars, scale = one_ahead(t, group), group["fallback_lr_scale"]
    return {**scalars, "lr": scalars["lr"] * scale, "decay": float(group["lr"]) * scale * group["weight_decay"]}


# What takes the parameters that are no hidden matrices.
FALLBACKS = {
    name: Rule(fn, ELEMENT, adam_state(amsgrad=False), _fallback_rates)
    for name, fn in (("adamw", moments_step), ("nadamw", nesterov_moments_step))
}


def _parts(name: str, value: Any) -> Any:
    """`qkv_split` as it lies in a group: a number of parts, their sizes, or None."""
    if value is None:
        return None
    sizes = entries(value)
    return integer(name, value, 1) if sizes is None else tuple(integer(name, size, 1) for size in sizes)


class MatrixOptimizer(RuleOptimizer):
    """A rule for the matrices inside a network, AdamW or NAdamW for everything else, in one optimizer.

    Hidden matrices are found by name, or by a group's `use_muon`. Subclasses give `matrix_rule`.
    """

    hidden_matrices = True
    _: KW_ONLY
    betas: tuple[float, float] = hyper((0.9, 0.95), "AdamW's decay rates", in_peers=False)
    fallback: str = hyper(
        "adamw",
        'what takes everything else; "nadamw" has Nesterov\'s momentum in it',
        choices=FALLBACKS,
        in_peers=False,
    )
    fallback_lr_scale: float = hyper(1.0, "the factor f of lr for everything else", in_peers=False)
    use_muon: bool | None = hyper(
        None,
        "whether a group's parameters are hidden matrices; None decides by their names and shapes",
        in_peers=False,
    )
    qkv_split: Any = hyper(
        None,
        "into what a matrix is divided: a number of equal parts of its longer side, or the sizes of the parts of "
        "either side; 1 for no division. None: three parts where the name says so (`c_attn`, `qkv`, `in_proj_weight`) "
        "and the longer side is three times the other",
        check=_parts,
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
        if not any(self._form_of(param, group) for group in self.param_groups for param in group["params"]):
            count = sum(len(group["params"]) for group in self.param_groups)
            raise ValueError(
                f"none of the {count} parameters is a matrix inside a network, all would get "
                f"{self.defaults['fallback']}; give the names of the whole model's parameters, or use_muon=True in the "
                f"group of its matrices"
            )

    def matrix_rule(self, form: Form, group: dict[str, Any]) -> Rule:
        """The rule for a hidden matrix of that form."""
        raise NotImplementedError

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        form = self._form_of(param, group)
        return FALLBACKS[group["fallback"]] if form is None else self.matrix_rule(form, group)

    def check_added(self, group: dict[str, Any]) -> None:
        for param in group["params"]:
            self._form_of(param, group)
        unknown = [each for each in self.param_groups if each["use_muon"] is None and "param_names" not in each]
        if len({param.ndim >= 2 for each in unknown for param in each["params"]}) == 2:
            raise ValueError(
                f"{type(self).__name__} cannot tell embeddings and heads from the matrices inside the network: the "
                f"parameters have no names. Give model.named_parameters(), or hfoptim.param_groups_muon(model), or "
                f"groups with use_muon=True and use_muon=False"
            )

    def _form_of(self, param: Tensor, group: Group) -> Form | None:
        name = self.name_of(param, group)
        return form_of(name, param.shape, group["use_muon"], group["stacked"], group["qkv_split"])
