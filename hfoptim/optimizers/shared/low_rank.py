"""Steps taken in a subspace of few rows or columns: gradients of matrices projected into it, updates projected back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, replace
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hfoptim.engine import ELEMENT, MATRIX, Group, Rule, Scalars, State, hyper, scalar
from hfoptim.optimizers.shared.matrices import Form, HiddenMatrices, as_matrix

# Which side of a matrix of more rows than columns, and of one of fewer, is made short.
_SIDES = {
    "std": ("right", "left"),
    "reverse_std": ("left", "right"),
    "right": ("right", "right"),
    "left": ("left", "left"),
    "full": ("full", "full"),
}
_MADE_SHORT = (
    "what is made short: rows of tall matrices and columns of wide ones; the others; always rows; always columns"
)
SIDES = tuple(_SIDES)


def side_of(kind: str, shape: Sequence[int]) -> str:
    """Which side of matrices of that shape is made short, by the kind: "right", "left" or "full", both."""
    tall, wide = _SIDES[kind]
    return tall if shape[-2] >= shape[-1] else wide


# The options `proj_type` of optimizers that need rows or columns left whole, and of others.
ONE_SIDED: str = hyper("std", _MADE_SHORT, choices=[kind for kind in SIDES if kind != "full"])
ANY_SIDED: str = hyper("std", f"{_MADE_SHORT}; both", choices=SIDES)


def _is_next(t: int, group: Group) -> bool:
    """Whether step t is the first one in a new subspace, after others."""
    due: bool = t > 1 and (t - 1) % group["update_proj_gap"] == 0
    return due


class Projection(NamedTuple):
    """How matrices are projected.

    Args:
        rank: how many rows or columns are left.
        side: "right" makes rows shorter, `G B^T`; "left" columns, `A^T G`; "full" both.
        random: whether B, or A, is random: normal numbers, divided by the root of the rank. Else it is the gradient's
            leading singular vectors.
    """

    rank: int
    side: str
    random: bool = False

    @classmethod
    def of(cls, rank: int, kind: str, shape: Sequence[int], random: bool = False) -> Projection:
        """The one of the kind `proj_type` for a matrix of that shape."""
        # A matrix has no more singular vectors than rows or columns.
        return cls(rank if random else min(rank, *shape[-2:]), side_of(kind, shape), random)

    @classmethod
    def short(cls, group: Group, shape: Sequence[int]) -> Projection:
        """As `of` by a group's `rank` and `proj_type`, but columns are made short where a matrix is square."""
        kind = group["proj_type"]
        return cls.of(group["rank"], "left" if shape[-2] == shape[-1] and kind.endswith("std") else kind, shape)

    def low(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what is left of a matrix of that shape."""
        *stacked, rows, columns = shape
        return (*stacked, rows if self.side == "right" else self.rank, columns if self.side == "left" else self.rank)

    def state(self) -> dict[str, State]:
        """The bases."""
        bases = {"left": self._basis(-2), "right": self._basis(-1)}
        if self.side == "full":
            return {f"ortho_matrix_{side}": basis for side, basis in bases.items()}
        return {"ortho_matrix": bases[self.side]}

    def _basis(self, dim: int) -> State:
        def init(param: Tensor, dtype: torch.dtype) -> Tensor:
            shape = list(param.shape)
            shape[-3 - dim] = self.rank
            return torch.zeros(shape, dtype=dtype, device=param.device)

        return State(init, of_shaped=True, drawn=self.random, redrawn=_is_next if self.random else None)

    def renewed(self, grad: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
        """The bases for a gradient, in the sizes of the old ones."""
        # Numbers that are not finite would raise an error, here and not where they came from.
        left, _, right = torch.linalg.svd(torch.nan_to_num(grad, 0.0, 0.0, 0.0), full_matrices=False)
        found = {"left": left, "right": right}
        sides = ("left", "right") if self.side == "full" else (self.side,)
        return [
            found[side][..., : old.shape[-1]] if side == "left" else found[side][..., : old.shape[-2], :]
            for side, old in zip(sides, state, strict=True)
        ]

    def down(self, grad: Tensor, state: Sequence[Tensor]) -> Tensor:
        """What is left of a gradient."""
        if self.side == "full":
            return state[0].mT @ grad @ state[1].mT
        low = grad @ state[0].mT if self.side == "right" else state[0].mT @ grad
        return low / math.sqrt(low.shape[self.dim]) if self.random else low

    def up(self, low: Tensor, state: Sequence[Tensor]) -> Tensor:
        """A matrix of the gradient's shape."""
        if self.side == "full":
            return state[0] @ low @ state[1]
        return low @ state[0] if self.side == "right" else state[0] @ low

    @property
    def dim(self) -> int:
        """The dimension that is made short."""
        return -1 if self.side == "right" else -2


class Finish(NamedTuple):
    """From the update in the subspace to that of the matrix.

    Args:
        fn: `(projection, gradient, its projection, update, the projection's state, *state, h)` ->
            `(update, *state)`.
        state: its own.
        scalars: what it reads of `h`, from a group.
    """

    fn: Callable[..., tuple[Any, ...]]
    state: Callable[[], Mapping[str, State]]
    scalars: Callable[[Group], Scalars]


@cache
def in_subspace(inner: Rule, projection: Projection, form: Form, finish: Finish) -> Rule:
    """The rule that takes the step of another one in a subspace, which is renewed at steps with `h.renew`.

    Args:
        inner: the rule of the projected gradient, of scope ELEMENT or TENSOR.
        projection: the subspace.
        form: how a parameter is a matrix.
        finish: makes an update of the parameter of one in the subspace.
    """
    bases, own = projection.state(), finish.state()
    low = {name: of_low(state, projection) for name, state in inner.state.items()}
    sized = inner.returns_step_size
    each = inner.fn if inner.scope is ELEMENT else _each(inner.fn, sized)

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        basis, kept, moments = state[: len(bases)], state[len(bases) : -len(low)], state[-len(low) :]
        renews = h.renew and not projection.random
        new = projection.renewed(grad, basis) if renews else list(basis)
        projected = projection.down(grad, new)
        update, *moments = each(projected, param, *moments, h)
        size = [moments.pop(0)] if sized else []
        update, *kept = finish.fn(projection, grad, projected, update, new, *kept, h)
        return (update, *size, *(new if renews else [None] * len(new)), *kept, *moments)

    fn.__name__ = finish.fn.__name__
    return Rule(
        fn, MATRIX, {**bases, **own, **low}, _renewing(inner, finish), returns_step_size=sized, shape=form.shape
    )


def _renewing(inner: Rule, finish: Finish) -> Callable[[int, Group], Scalars]:
    def per_step(t: int, group: Group) -> Scalars:
        renew = t == 1 or _is_next(t, group)
        return {**inner.per_step(t, group), **finish.scalars(group), "renew": float(renew)}

    return per_step


def of_low(state: State, projection: Projection) -> State:
    """A state of the projected gradient, not of the parameter; a number for each matrix of a stack."""
    if state is scalar:
        return State(lambda param, dtype: param.new_zeros(param.shape[:-2], dtype=dtype), of_shaped=True)
    return replace(state, shape=projection.low)


def _each(fn: Callable[..., tuple[Any, ...]], sized: bool) -> Callable[..., tuple[Any, ...]]:
    """A rule of whole tensors for stacks of matrices, one after the other."""

    def of_stack(grad: Tensor, param: Tensor, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        if grad.ndim == 2:
            update, *rest = fn(grad, param, *state, h)
            if sized:
                rest[0] = torch.as_tensor(rest[0], dtype=grad.dtype, device=grad.device).reshape(1, 1)
            return (update, *rest)
        done = [of_stack(*tensors, h) for tensors in zip(grad, param, *state, strict=True)]
        return tuple(torch.stack(column) for column in zip(*done, strict=True))

    return of_stack


def _begins_unlimited(param: Tensor, dtype: torch.dtype) -> Tensor:
    return param.new_full(param.shape[:-2], math.inf, dtype=dtype)


# The norm of the last update of each matrix, after it was limited; at first there is no limit.
last_norm = State(_begins_unlimited, signed=False, of_shaped=True)
# How much larger than the last one an update may be.
_GROWTH = 1.01
_TINY = 1e-8


def limit(norm: Tensor, last: Tensor, growth: float = _GROWTH) -> tuple[Tensor, Tensor]:
    """Fira's norm-growth limiter: the factor that keeps an update below `growth` times the last one, and its norm then.

    Args:
        norm: of the update, see `norm_of`.
        last: that of the last one, after it was limited.
        growth (default 1.01): by how much an update may be larger.
    """
    factor = growth / (norm / (last[..., None, None] + _TINY)).clamp(min=growth)
    return factor, (norm * factor)[..., 0, 0]


def scale_of(update: Tensor, low: Tensor, dims: tuple[int, ...]) -> Tensor:
    """How much longer an update in the subspace is than the projected gradient: by rows, columns or as a whole."""
    return norm_of(update, dims) / (norm_of(low, dims) + _TINY)


def scaled_norm(x: Tensor, scale: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The norm of `x * scale`, for scales that are equal along these dimensions; in one pass over x."""
    return norm_of(norm_of(x, dims) * scale, (-2, -1))


def norm_of(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Norms over dimensions, which are kept with size 1."""
    if dims == (-2,):  # a CPU takes ten times as long for the norm
        return (x * x).sum(-2, keepdim=True).sqrt()
    norm: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    return norm


class LowRank(HiddenMatrices):
    """An optimizer whose steps for matrices are taken in a subspace; the other base class takes everything else.

    With `rank` given to the constructor these are the matrices inside the network, found by name or by a group's
    `use_muon`; else all parameters of the groups that have a `rank`.
    """

    finish: ClassVar[Finish]
    _: KW_ONLY
    rank: int | None = hyper(
        None,
        "rows or columns of the subspace; None: no projection. Given to the constructor it is for the matrices inside "
        "the network, given in groups alone for all of their parameters",
        low=1,
    )
    update_proj_gap: int = hyper(200, "steps from one subspace to the next", low=1)

    @property
    def rest(self) -> str:
        return "steps without a projection"

    @property
    def wants_matrices(self) -> bool:
        return any(group["rank"] is not None for group in self.param_groups)

    def chosen_by_name(self, group: Group) -> bool:
        chosen: bool = group["rank"] is not None and self.defaults["rank"] is not None and group["use_muon"] is None
        return chosen

    def projection_for(self, shape: Sequence[int], group: Group) -> Projection:
        """The subspace for matrices of a shape."""
        return Projection.of(group["rank"], group["proj_type"], shape)

    def finish_for(self, group: Group) -> Finish:
        """What makes an update of one in the subspace."""
        return self.finish

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        form = self._form_of(param, group)
        if form is None:
            return super().rule_for(param, group)
        projection, low = self._subspace(param, form, group)
        inner = super().rule_for(torch.empty(low, device="meta"), group)
        return in_subspace(inner, projection, form, self.finish_for(group))

    def taken_by(self, param: Tensor, group: dict[str, Any]) -> str:
        form = self._form_of(param, group)
        if form is None:
            return "no projection"
        return f"projected to {'x'.join(map(str, self._subspace(param, form, group)[1]))}"

    def _subspace(self, param: Tensor, form: Form, group: Group) -> tuple[Projection, tuple[int, ...]]:
        """The projection of a parameter, and the shape of what is left of it."""
        shape = as_matrix(param.shape) if form.flattened else tuple(param.shape)
        projection = self.projection_for(shape, group)
        return projection, projection.low(shape)

    def _form_of(self, param: Tensor, group: Group) -> Form | None:
        if group["rank"] is None:
            return None
        if group["use_muon"] is None and not self.chosen_by_name(group):
            group = {**group, "use_muon": True}
        return super()._form_of(param, group)
