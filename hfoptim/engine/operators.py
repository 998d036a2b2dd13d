"""The operations that rules are made of: one table, read by every backend.

An operation that is added here works eagerly, over lists of tensors, on parts of sharded ones, in a traced rule, in
C++ and in Triton. What has no place in a kernel is in `REFUSED`, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True)
class Operator:
    """An element-wise operation.

    Args:
        name: torch's: `torch.<name>`, the method of a tensor, and the operation of a graph's node.
        cpp: C++ for it, with `{0}`, `{1}`, ... for the operands and `{real}` for their type; "" where a formula says it
            all.
        triton: the same in Triton; "" where it is written as in C++.
        dunders: Python's methods for it; those that begin with `__r` have the operands the other way round.
        aliases: other names that torch has for it.
        boolean: whether it gives truth values.
        logical: whether it takes truth values; numbers are true unless 0.
        commutes: whether the operands may change places.
        formula: called like the method, gives the same by other operations, for kernels; NotImplemented leaves it to
            `cpp` and `triton`.
    """

    name: str
    cpp: str = ""
    triton: str = ""
    dunders: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    boolean: bool = False
    logical: bool = False
    commutes: bool = False
    formula: Callable[..., Any] | None = None

    @cached_property
    def eager(self) -> Callable[..., Any]:
        """The function of torch."""
        function: Callable[..., Any] = getattr(torch, self.name, None) or getattr(torch.nn.functional, self.name)
        return function

    @cached_property
    def foreach(self) -> Callable[..., Any] | None:
        """The multi-tensor function of torch, where this version has one."""
        function: Callable[..., Any] | None = getattr(torch, f"_foreach_{self.name}", None)
        return function

    @property
    def arity(self) -> int:
        """How many operands `cpp` takes."""
        return 1 + max(i for i in range(3) if f"{{{i}}}" in self.cpp)


def _is(value: Any, *numbers: float) -> bool:
    """Whether a value is one of these numbers; a symbol is none."""
    return isinstance(value, (int, float)) and value in numbers


def _scaled(sign: int) -> Callable[..., Any]:
    def formula(x: Any, other: Any, *, alpha: Any = 1.0) -> Any:
        if _is(alpha, 1):
            return NotImplemented
        return x + other * alpha if sign > 0 else x - other * alpha

    return formula


def _pow(x: Any, exponent: Any) -> Any:
    if _is(exponent, 2, 4):
        square = x * x
        return square if exponent == 2 else square * square
    if _is(exponent, 0.5, -0.5):
        return x.sqrt() if exponent > 0 else x.rsqrt()
    return NotImplemented


def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    out = x if min is None else x.maximum(min)
    return out if max is None else out.minimum(max)


def _remainder(x: Any, other: Any) -> Any:
    rest = torch.fmod(x, other)
    return torch.where((rest != 0) & ((rest < 0) != (other < 0)), rest + other, rest)


def _nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Any:
    largest = torch.finfo(x.dtype).max
    x = torch.where(x == torch.inf, largest if posinf is None else posinf, x)
    x = torch.where(x == -torch.inf, -largest if neginf is None else neginf, x)
    return torch.where(x != x, nan, x)


def _comparison(name: str, sign: str, alias: str) -> Operator:
    return Operator(name, f"{{0}} {sign} {{1}}", dunders=(f"__{name}__",), aliases=(alias,), boolean=True)


def _logical(name: str, sign: str) -> Operator:
    dunders = (f"__{name}__", f"__r{name}__")
    return Operator(
        f"logical_{name}", f"{{0}} {sign} {{1}}", dunders=dunders, boolean=True, logical=True, commutes=True
    )


def _call(name: str, triton: str = "", cpp: str = "", **more: Any) -> Operator:
    """A function: of C's mathematics, and of Triton's language or `codegen/triton/runtime.py`."""
    return Operator(name, cpp or f"math::{name}({{0}})", triton or f"tl.{name}({{0}})", **more)


def _call2(name: str, **more: Any) -> Operator:
    return Operator(name, f"math::{name}({{0}}, {{1}})", f"{name}({{0}}, {{1}})", **more)


def _derived(name: str, formula: Callable[..., Any], **more: Any) -> Operator:
    return Operator(name, formula=formula, **more)


_ALL = (
    # A product: Triton 3.6 takes -x for 0 - x, which has no -0.
    Operator("neg", "-{0}", "{0} * -1.0", dunders=("__neg__",), aliases=("negative",)),
    Operator("add", "{0} + {1}", dunders=("__add__", "__radd__"), commutes=True, formula=_scaled(1)),
    Operator("sub", "{0} - {1}", dunders=("__sub__", "__rsub__"), aliases=("subtract",), formula=_scaled(-1)),
    Operator("mul", "{0} * {1}", dunders=("__mul__", "__rmul__"), aliases=("multiply",), commutes=True),
    Operator(
        "div",
        "{0} / {1}",
        "divided({0}, {1})",
        dunders=("__truediv__", "__rtruediv__"),
        aliases=("divide", "true_divide"),
    ),
    _call2("pow", dunders=("__pow__", "__rpow__"), formula=_pow),
    _call2("fmod"),
    _derived("remainder", _remainder, dunders=("__mod__", "__rmod__")),
    _comparison("gt", ">", "greater"),
    _comparison("ge", ">=", "greater_equal"),
    _comparison("lt", "<", "less"),
    _comparison("le", "<=", "less_equal"),
    _comparison("eq", "==", "equals"),
    _comparison("ne", "!=", "not_equal"),
    _logical("and", "&"),
    _logical("or", "|"),
    _logical("xor", "!="),
    Operator("logical_not", "!{0}", "~{0}", dunders=("__invert__",), boolean=True, logical=True),
    _call("isfinite", "tl.abs({0}) < float('inf')", boolean=True),
    _derived("isnan", lambda x: x != x),
    _derived("isinf", lambda x: x.abs() == torch.inf),
    Operator("where", "{0} ? {1} : {2}", "tl.where({0}, {1}, {2})"),
    _derived("masked_fill", lambda x, mask, value: torch.where(mask, value, x)),
    # -- of the field of numbers
    _call("abs", cpp="math::fabs({0})", dunders=("__abs__",), aliases=("absolute",)),
    Operator("sign", "sign({0})", "sign({0})"),
    _call2("copysign"),
    _derived("heaviside", lambda x, values: torch.where(x > 0, 1.0, torch.where(x == 0, values, 0.0))),
    Operator("maximum", "larger<{real}>({0}, {1})", "larger({0}, {1})"),
    Operator("minimum", "smaller<{real}>({0}, {1})", "smaller({0}, {1})"),
    _derived("clamp", _clamp, aliases=("clip",)),
    _derived("clamp_min", lambda x, min: x.maximum(min)),
    _derived("clamp_max", lambda x, max: x.minimum(max)),
    _derived("nan_to_num", _nan_to_num),
    _call("floor"),
    _call("ceil"),
    _call("trunc", "trunc({0})", aliases=("fix",)),
    _call("round", "rint({0})", "math::nearbyint({0})"),
    # -- powers
    _call("sqrt", "rooted({0})"),
    _derived("rsqrt", lambda x: 1.0 / x.sqrt()),
    _derived("square", lambda x: x * x),
    _derived("reciprocal", lambda x: 1.0 / x),
    _call("exp"),
    _call("exp2"),
    _call("expm1", "expm1({0})"),
    _call("log"),
    _call("log2"),
    _call("log1p", "log1p({0})"),
    # -- angles and curves
    _call("sin"),
    _call("cos"),
    _call2("atan2", aliases=("arctan2",)),
    _call("tanh", "tanh({0})"),
    _call("erf"),
    _derived("sigmoid", lambda x: 1.0 / ((-x).exp() + 1.0)),
    _derived("softsign", lambda x: x / (x.abs() + 1.0)),
    # -- several at once
    _derived("lerp", lambda x, end, weight: x + (end - x) * weight),
    _derived("addcmul", lambda x, a, b, *, value=1: x + (a * b if _is(value, 1) else a * b * value)),
    _derived("addcdiv", lambda x, a, b, *, value=1: x + (a / b if _is(value, 1) else a / b * value)),
    # The shape of a tensor, and one number: never a number alone, which would have no shape.
    _derived("zeros_like", lambda x: torch.where(x == x, 0.0, 0.0)),
    _derived("ones_like", lambda x: torch.where(x == x, 1.0, 1.0)),
    _derived("full_like", lambda x, value: torch.where(x == x, value, value)),
)

OPERATORS = {operator.name: operator for operator in _ALL}
# By every name but Python's.
NAMED = {name: operator for operator in _ALL for name in (operator.name, *operator.aliases)}
DUNDERS = {dunder: operator for operator in _ALL for dunder in operator.dunders}
BOOLEAN = frozenset(operator.name for operator in _ALL if operator.boolean)

# Reductions and what gives a tensor another shape are methods of each class, since each needs another algorithm:
# sum, mean, norm (p = 0, 1, 2, inf, ...), amax, amin, unsqueeze, squeeze. Functions of torch -> their methods.
METHODS = {name: name for name in ("sum", "mean", "norm", "amax", "amin", "unsqueeze", "squeeze", "clone")}
METHODS |= {"linalg_vector_norm": "norm"}


def norm(x: Any, p: float, dim: Any, keepdim: bool) -> Any:
    """`x.norm(p, dim, keepdim)` by other operations, for any number p."""
    if p == 2:
        return x.square().sum(dim, keepdim).sqrt()
    if p in (torch.inf, -torch.inf):
        return abs(x).amax(dim, keepdim) if p > 0 else abs(x).amin(dim, keepdim)
    if p == 0:
        return (x != 0).sum(dim, keepdim)
    return abs(x).sum(dim, keepdim) if p == 1 else (abs(x) ** p).sum(dim, keepdim) ** (1.0 / p)


_REASONS = {
    "needs the entries in order": "sort argsort topk kthvalue median nanmedian quantile nanquantile mode msort unique",
    "makes an entry of all that come before it": "cumsum cumprod cummax cummin logcumsumexp diff",
    "reads entries from other places, as indexing does": (
        "__getitem__ gather scatter index_select take take_along_dim masked_select flip roll narrow argmax argmin"
    ),
    "is a product of matrices, which rules of scope MATRIX may take": (
        "__matmul__ __rmatmul__ matmul mm bmm mv dot outer addmm baddbmm einsum linalg_qr linalg_svd"
    ),
    "gives a tensor another shape, for which there is `Rule.shape`": (
        "flatten reshape view transpose permute t mT T expand expand_as repeat split chunk cat stack unflatten"
    ),
    "turns values into Python's numbers": (
        "__float__ __int__ __index__ __len__ __iter__ __complex__ item tolist numpy cpu"
    ),
    "asks for a size; mean() needs none": "numel size shape nelement",
    "draws random numbers": "rand_like randn_like bernoulli bernoulli_ normal_ uniform_ dropout multinomial",
    "gives a pair, or all by itself; use amax(), amin()": "max min aminmax",
    "rounds a quotient; write (x / y).floor()": "__floordiv__ __rfloordiv__ floor_divide",
}
REFUSED = {name: reason for reason, names in _REASONS.items() for name in names.split()}


def refusal(name: str) -> str:
    """Why no kernel is generated for an operation, and no part of a sharded tensor goes through it."""
    if name.endswith("_") and not name.endswith("__") and name not in REFUSED:
        return f"it uses {name}, which writes in place"
    return f"it uses {name}, which {REFUSED.get(name, 'is not in the table of operations, engine/operators.py')}"
