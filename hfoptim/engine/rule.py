"""The contract of a rule: one optimizer's mathematics as a pure function.

    rule(grad, param, *state, h) -> (update, *new_state)

A rule reads nothing but its arguments and writes nothing: the engine writes the parameter and the state back. A new
state of None means: as it was. `h` holds what `per_step` returned, plus `lr`: Python floats in the loop and foreach
backends, symbols or 0-d tensors in the compiled one, so a rule must only do arithmetic on them, never branch. What
depends on the step, or on `1 - beta` for a beta close to 1, is computed by `per_step` on the host in double precision:
in float32 `1 - 0.999` is off by 1e-5. A rule asks no tensor for its size either (`mean`, not `sum / numel`): it is
traced once for all sizes.
"""

from __future__ import annotations

import enum
import math
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from hfoptim.engine.tensor_list import TensorList

# A parameter group, read and not written.
Group = Mapping[str, Any]
Scalars = dict[str, Any]
PerStep = Callable[..., Scalars]
# `(grad, param, *state, h) -> {name: 0-d tensor}`, pure like a rule: numbers about a tensor's step.
Function = Callable[..., dict[str, Any]]


class Scope(enum.Enum):
    """What one entry of an update may depend on; decides which backends are legal."""

    ELEMENT = "its own entry only: tensors may be flattened, cut and sharded freely"
    TENSOR = "reductions over its tensor"
    MATRIX = "the whole matrix, which is its last two dimensions (or `Rule.dims`): those before them are a batch"


ELEMENT, TENSOR, MATRIX = Scope.ELEMENT, Scope.TENSOR, Scope.MATRIX


@dataclass(frozen=True)
class State:
    """How a state tensor begins, and what may be done to keep it small.

    Args:
        init: `(param, dtype) -> Tensor`, its first value.
        signed: whether it takes negative values.
        compressible: whether it may be kept in fewer bits; only what has the parameter's shape may, or that of `shape`.
        of_shaped: whether `init` is given the parameter in the shape that the rule sees (`Rule.shape`), not in its own.
        narrow: whether it is kept in bfloat16, rounded to the nearest, where `state_dtype` does not ask for less.
        drawn: whether it begins as numbers of a standard normal distribution in place of `init`'s: each entry's by its
            index and by the parameter's place in the optimizer, so that sharding and repeating give the same.
        redrawn: `(t, group)` -> whether new ones are drawn before step t.
        placed: whether it is the position of the parameter in its group, from 0, in place of `init`'s number.
        shape: `(shape that the rule sees) -> shape` of a tensor of which it is the state, in place of the parameter: of
            a projected gradient, for example.
        of_values: whether an entry of `init` is made of several of the parameter's, such as the length of a row. Where
            these lie on several ranks, each takes the whole parameter for it.
    """

    init: Callable[[Tensor, torch.dtype], Tensor]
    signed: bool = True
    compressible: bool = False
    of_shaped: bool = False
    narrow: bool = False
    drawn: bool = False
    redrawn: Callable[[int, Group], bool] | None = None
    placed: bool = False
    shape: Callable[[Sequence[int]], tuple[int, ...]] | None = None
    of_values: bool = False

    def __call__(self, param: Tensor, dtype: torch.dtype) -> Tensor:
        return self.init(param, dtype)

    @property
    def starts_at_zero(self) -> bool:
        """Whether it is known to begin at zero, so that its compressed form can be made without it."""
        return self.init is _zeros and not self.drawn


def _zeros(param: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)


def _clone(param: Tensor, dtype: torch.dtype) -> Tensor:
    return _zeros(param, dtype).copy_(param)


def _scalar(param: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype, device=param.device)


# The parameter's shape, zero: a momentum.
zeros = State(_zeros, compressible=True)
# The parameter's shape, zero and never below: a second moment.
nonnegative = State(_zeros, signed=False, compressible=True)
# A copy of the parameter, kept exact: weights that are averaged or returned to.
clone = State(_clone)
# The parameter's shape, normal noise of variance 1, kept exact.
noise = State(_zeros, drawn=True)
# The same, new at every step.
fresh_noise = replace(noise, redrawn=lambda t, group: True)
# One number per parameter, zero, on the parameter's device.
scalar = State(_scalar)
# The position of the parameter in its group, from 0, where its state was made.
place = State(_scalar, placed=True)


def in_bfloat16(state: State) -> State:
    """The same state kept in bfloat16, but for parameters in double precision."""
    return replace(state, narrow=True)


@cache
def zeros_over(dim: int, signed: bool = False) -> State:
    """State of the shape that the rule sees, with dimension `dim` of size 1, zero: a sum or a mean over it."""

    def init(param: Tensor, dtype: torch.dtype) -> Tensor:
        shape = list(param.shape)
        shape[dim] = 1
        return torch.zeros(shape, dtype=dtype, device=param.device)

    return State(init, signed=signed, of_shaped=True)


def zeros_without(dim: int) -> State:
    """State of the parameter's shape without dimension `dim`, zero: one factor of a factored moment."""

    def init(param: Tensor, dtype: torch.dtype) -> Tensor:
        shape = list(param.shape)
        del shape[dim]
        return torch.zeros(shape, dtype=dtype, device=param.device)

    return State(init, signed=False)


def _nothing(t: int, group: Group) -> Scalars:
    return {}


@dataclass(frozen=True)
class Probe:
    """Sums over all tensors of an optimizer (and over ranks) that a step needs before it starts.

    Args:
        fn: `(grad, param, *state, h) -> {name: 0-d tensor}`, pure like a rule, each a sum over entries, so that it can
            be taken part by part. `grad` has its sign (`maximize`) and its coupled decay already, `state` is that
            before the step.
        per_step: `(t, group) -> {name: number}`, what `fn` sees as `h`.
        of_tensors: whether `fn` takes reductions over a tensor before it sums, such as a deviation to divide by, so
            that the parts of a sharded tensor need each other.
    """

    fn: Function
    per_step: PerStep = _nothing
    of_tensors: bool = False


@dataclass(frozen=True, eq=False)
class MatrixFunction:
    """What a rule of scope MATRIX does with whole matrices, by products of them: a function of its own, in the rule.

    Where a rule calls no others, everything around it is element-wise or a sum, and can be generated kernels; the
    function is then given all matrices of a bucket together.

    Args:
        fn: `(stacks, *numbers) -> stacks`. A stack is a tensor of at least two dimensions, of which the last two are a
            matrix; each result has its shape, and may have another dtype.
    """

    fn: Callable[..., Sequence[Tensor]]
    # Whether values go through as they are: where what is around the functions is tried, without them.
    left_out: ClassVar[bool] = False

    def __call__(self, matrix: Any, *numbers: Any) -> Any:
        """Of one stack of matrices, or traced."""
        if isinstance(matrix, Tensor):
            return self.of([matrix], *numbers)[0]
        return matrix.given_to(self, *numbers)

    def of(self, stacks: Sequence[Tensor], *numbers: Any) -> Sequence[Tensor]:
        """Of several stacks."""
        return stacks if self.left_out else self.fn(stacks, *numbers)


@dataclass(frozen=True, eq=False)
class Partner:
    """States that are made of another parameter before a step: of the other factor of a low-rank product, for example.

    Each is made before any parameter moves, so that the order in which they move does not matter.
    `EngineOptimizer.partner_of` says whose partner is which.

    Args:
        states: their names, among those of the rule.
        fn: `(partner, *states) -> states`, pure, of partners and states of several parameters, each stacked along a new
            first dimension.
    """

    states: tuple[str, ...]
    fn: Callable[..., Sequence[Tensor]]


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule with what the engine has to know about it.

    Args:
        fn: the pure function `(grad, param, *state, h) -> (update, *new_state)`.
        scope: what one entry of the update may depend on.
        state: name -> `State`, in the order of the rule's arguments.
        per_step: `(t, group, **totals) -> {name: float or 0-d tensor}`, called on the host once per bucket of tensors;
            `t` counts from 1. What it returns is what the rule sees as `h`. `lr` in it is what the update is multiplied
            by, instead of the group's lr; weight decay goes by the group's, unless it gives `decay` (what the
            parameter is multiplied by for a decoupled decay) or `weight_decay` itself.
        probe: sums that are handed to `per_step` by name.
        scaled: the update already contains the learning rate, and the rule returns its own step size, a number or a 0-d
            tensor, right after it: `(update, size, *new_state)`. Decoupled weight decay then follows that size.
        shape: `(shape of the parameter) -> shape`, the one in which the rule sees parameter, gradient and what state
            has the parameter's shape; None: their own. For blocks of rows, or kernels as matrices.
        report: `(grad, param, *state, h) -> {name: 0-d tensor}`, pure like the rule and called with the same: numbers
            about a tensor's step that people watch, such as a trust ratio. Called only while somebody asks
            (`RuleOptimizer.report`). For rules of scope `TENSOR`.
        sparse: whether it also steps parameters with a sparse gradient: those entries alone that the gradient has. The
            others, and their state, stay as they are. For rules of scope `ELEMENT`.
        dims: how many of the last dimensions a rule of scope `MATRIX` looks at; those before them are a batch.
        partner: what it is to know of another parameter, which is a state of the rule.
        whole: whether it takes entries by their place in the whole tensor, such as every eleventh: it is not tried on
            parts of sharded parameters.
        exact_weights: whether it compares weights with earlier ones that its state remembers, or makes them anew: it
            then reads them with what rounding took (Kahan's term), without which small movements are none. Others read
            the rounded ones, where the gradient is.
    """

    fn: Callable[..., tuple[Any, ...]]
    scope: Scope
    state: Mapping[str, State] = field(default_factory=dict)
    per_step: PerStep = _nothing
    probe: Probe | None = None
    returns_step_size: bool = False
    shape: Callable[[torch.Size], tuple[int, ...]] | None = None
    report: Function | None = None
    sparse: bool = False
    dims: int = 2
    partner: Partner | None = None
    whole: bool = False
    exact_weights: bool = False

    def __post_init__(self) -> None:
        if self.report is not None and self.scope is not Scope.TENSOR:
            # Others are given parts of tensors, of which no number about the whole can be made.
            raise TypeError(f"{self.name} has a report, which a rule of scope {self.scope.name} cannot have")
        if self.sparse and (self.scope is not Scope.ELEMENT or self.probe is not None or self.shape is not None):
            raise TypeError(f"{self.name} looks at more than single entries, and cannot take sparse gradients")

    @property
    def name(self) -> str:
        return self.fn.__name__

    @cached_property
    def redrawn(self) -> dict[str, Callable[[int, Group], bool]]:
        """What says at which steps a state is drawn again, by its name."""
        return {name: state.redrawn for name, state in self.state.items() if state.redrawn is not None}

    def first(self, name: str, param: Tensor, dtype: torch.dtype) -> Tensor:
        """The first value of a parameter's state `name`."""
        init = self.state[name]
        if init.shape is not None:
            return init(param.new_empty(self.shape_of(name, param.shape)), dtype)
        return init(param.reshape(self.shape(param.shape)) if init.of_shaped and self.shape else param, dtype)

    def shape_of(self, name: str, shape: torch.Size) -> Sequence[int]:
        """The shape of a state that may be kept in fewer bits, for a parameter of that shape."""
        of = self.state[name].shape
        if of is None:
            return shape
        return of(shape if self.shape is None else self.shape(shape))

    def __repr__(self) -> str:
        return f"rule({self.name}, {self.scope.name}, state={list(self.state)})"


def rule(
    scope: Scope,
    *,
    per_step: PerStep = _nothing,
    probe: Probe | None = None,
    returns_step_size: bool = False,
    shape: Callable[[torch.Size], tuple[int, ...]] | None = None,
    report: Function | None = None,
    sparse: bool = False,
    exact_weights: bool = False,
    **state: State,
) -> Callable[[Callable[..., tuple[Any, ...]]], Rule]:
    """Turn a pure function into a `Rule`; the keyword arguments are those of `Rule`, every other one a state."""

    def decorate(fn: Callable[..., tuple[Any, ...]]) -> Rule:
        ways = (per_step, probe, returns_step_size, shape, report, sparse)
        return Rule(fn, scope, state, *ways, exact_weights=exact_weights)

    return decorate


@cache
def hyper_type(names: tuple[str, ...]) -> type[Any]:
    """The NamedTuple a rule sees as `h`; one type per set of names, so that torch.compile traces it once."""
    return namedtuple("Hyper", names)


def ema(average: Any, new: Any, alpha: Any) -> Any:
    """Exponential moving average: `average + alpha * (new - average)`.

    A number goes to `lerp`, one pass. Traced, `lerp` would compute both of its formulas and select one.
    """
    return average + (new - average) * alpha if isinstance(alpha, Tensor) else average.lerp(new, alpha)


def add_scaled(x: Any, y: Any, factor: Any) -> Any:
    """`x + factor * y`; in one pass if the factor is a number."""
    return x.add(y, alpha=factor) if isinstance(factor, (int, float)) else x + y * factor


def cautious(update: Any, grad: Any) -> Any:
    """The update without what points against the gradient, scaled to the mean it had (arXiv 2411.16085)."""
    mask = ((update * grad) > 0).to(update.dtype)
    return update * (mask / mask.mean().clamp(min=1e-3))


def masked_and_scale(update: Any, grad: Any) -> tuple[Any, Any]:
    """The two factors of `cautious`: the update without what points against the gradient, and what it is scaled by."""
    mask = ((update * grad) > 0).to(update.dtype)
    return update * mask, mask.mean().clamp(min=1e-3).reciprocal()


def rms(x: Any) -> Any:
    """Root mean square over a whole tensor, in one pass without a temporary."""
    if isinstance(x, TensorList):
        norms = torch._foreach_norm(x.tensors)
        return TensorList([norm / tensor.numel() ** 0.5 for norm, tensor in zip(norms, x.tensors, strict=True)])
    if isinstance(x, Tensor) and not torch.compiler.is_compiling():
        return x.norm() / x.numel() ** 0.5
    return (x * x).mean().sqrt()


def bias_correction(beta: float, t: int) -> float:
    """`1 - beta**t` without cancellation, for beta in [0, 1) and t >= 1."""
    return -math.expm1(t * math.log(beta)) if beta > 0.0 else 1.0
