"""Every operation of the table, as a rule would write it, on numbers that show where backends differ."""

from __future__ import annotations

import itertools
import math

import torch

from hfoptim.engine.rule import State, scalar, zeros, zeros_without

# name of the operation -> its use; several uses have a word behind the name.
ELEMENTWISE = {
    "neg": lambda x, y: -x,
    "add": lambda x, y: x + y + 2.0,
    "add alpha": lambda x, y: x.add(y, alpha=-0.3),
    "sub": lambda x, y: 3.0 - (x - y),
    "sub alpha": lambda x, y: torch.sub(x, y, alpha=2.0),
    "mul": lambda x, y: 3.0 * x * y,
    "div": lambda x, y: x / y,
    "pow": lambda x, y: x**y,
    "pow number": lambda x, y: x**3.0,
    "pow of number": lambda x, y: torch.pow(2.5, y),
    "pow half": lambda x, y: x**0.5,
    "fmod": lambda x, y: torch.fmod(x, y),
    "fmod number": lambda x, y: x.fmod(-2.0),
    "remainder": lambda x, y: x % y,
    "remainder number": lambda x, y: torch.remainder(x, -1.5),
    "gt": lambda x, y: torch.where(x > y, 1.0, 0.0),
    "ge": lambda x, y: (x >= y).to(x.dtype),
    "lt": lambda x, y: (x < y) * x,
    "le": lambda x, y: (x.le(y)).to(x.dtype),
    "eq": lambda x, y: (x == y).to(x.dtype),
    "ne": lambda x, y: (x != y) * 2.0,
    "logical_and": lambda x, y: ((x > 0) & (y > 0)).to(x.dtype),
    "logical_and numbers": lambda x, y: torch.logical_and(x, y).to(x.dtype),
    "logical_or": lambda x, y: ((x > 0) | (y > 0)).to(x.dtype),
    "logical_xor": lambda x, y: ((x > 0) ^ (y > 0)).to(x.dtype),
    "logical_not": lambda x, y: (~(x > y)).to(x.dtype),
    "logical products": lambda x, y: ((x > 0) * (y > 0)).to(x.dtype) + ((x > 0) + (y > 0)).to(x.dtype),
    "isfinite": lambda x, y: x.isfinite().to(x.dtype),
    "isnan": lambda x, y: torch.isnan(x).to(x.dtype),
    "isinf": lambda x, y: torch.isinf(x).to(x.dtype),
    "where": lambda x, y: torch.where(x > y, x, 7.0) + x.where(x > 1.0, y),
    "masked_fill": lambda x, y: x.masked_fill(y > 0, -2.0),
    "abs": lambda x, y: abs(x),
    "sign": lambda x, y: x.sign(),
    "copysign": lambda x, y: torch.copysign(x, y),
    "heaviside": lambda x, y: torch.heaviside(x, y),
    "maximum": lambda x, y: torch.maximum(x, y),
    "minimum": lambda x, y: x.minimum(y),
    "clamp": lambda x, y: x.clamp(min=-1.0, max=2.0),
    "clamp both": lambda x, y: x.clamp(min=y),
    "clamp_min": lambda x, y: x.clamp_min(0.25),
    "clamp_max": lambda x, y: torch.clamp_max(x, 0.25),
    "nan_to_num": lambda x, y: x.nan_to_num(),
    "nan_to_num given": lambda x, y: torch.nan_to_num(x, nan=1.0, posinf=3.0),
    "floor": lambda x, y: x.floor(),
    "ceil": lambda x, y: x.ceil(),
    "trunc": lambda x, y: torch.trunc(x),
    "round": lambda x, y: torch.round(x),
    "sqrt": lambda x, y: x.sqrt(),
    "rsqrt": lambda x, y: x.rsqrt(),
    "square": lambda x, y: x.square(),
    "reciprocal": lambda x, y: x.reciprocal(),
    "exp": lambda x, y: x.exp(),
    "exp2": lambda x, y: x.exp2(),
    "expm1": lambda x, y: torch.expm1(x),
    "log": lambda x, y: x.log(),
    "log2": lambda x, y: x.log2(),
    "log1p": lambda x, y: x.log1p(),
    "sin": lambda x, y: x.sin(),
    "cos": lambda x, y: x.cos(),
    "atan2": lambda x, y: torch.atan2(x, y),
    "tanh": lambda x, y: x.tanh(),
    "erf": lambda x, y: x.erf(),
    "sigmoid": lambda x, y: x.sigmoid(),
    "softsign": lambda x, y: torch.nn.functional.softsign(x),
    "lerp": lambda x, y: x.lerp(y, 0.25),
    "addcmul": lambda x, y: x.addcmul(y, y, value=0.5),
    "addcdiv": lambda x, y: torch.addcdiv(x, y, x),
    "zeros_like": lambda x, y: torch.zeros_like(x),
    "ones_like": lambda x, y: torch.ones_like(x) + y,
    "full_like": lambda x, y: torch.full_like(x, 2.5),
}
# Those that round: they may be some units in the last place apart. torch's lerp goes from its other end above 1/2.
ROUNDED = {
    *("pow", "exp", "exp2", "expm1", "log", "log2", "log1p", "sin", "cos", "atan2", "tanh", "erf", "sigmoid"),
    *("add", "sub", "rsqrt", "lerp", "addcmul", "addcdiv", "softsign", "remainder"),
}
# Whether of 0 and -0 the first or the second is taken is not said.
UNSIGNED = {"maximum", "minimum", "clamp", "clamp_min", "clamp_max"}

ODD = (math.nan, math.inf, -math.inf, 0.0, -0.0)
EVEN = (0.5, 1.5, 2.5, 3.25, 7.0, 1e-3, 1e9)


def operands(dtype):
    """All pairs of odd numbers, halves, others and subnormal ones."""
    tiny = torch.finfo(dtype).tiny / 8
    numbers = (*ODD, *EVEN, *(-x for x in EVEN), tiny, -tiny)
    x, y = zip(*itertools.product(numbers, numbers), strict=True)
    return torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)


def elementwise(grad, param, *state_and_h):
    """A rule whose states become what each operation gives for gradient and parameter."""
    return (grad, *(fn(grad, param) for fn in ELEMENTWISE.values()))


ELEMENTWISE_STATES = {f"s{i}": State(zeros.init) for i in range(len(ELEMENTWISE))}


def differing(name, ours, x, y, units=16):
    """Where results of an operation are not torch's: NaN is itself, and 0 is not -0."""
    theirs = ELEMENTWISE[name](x, y)
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    operation = name.split()[0]
    if operation in ROUNDED:
        eps = torch.finfo(theirs.dtype).eps
        same |= (ours - theirs).abs() <= units * eps * theirs.abs() + torch.finfo(theirs.dtype).tiny
    elif operation not in UNSIGNED:
        same &= (ours.signbit() == theirs.signbit()) | theirs.isnan()
    if name in ("fmod", "remainder"):
        # Where the quotient overflows torch's vector code gives NaN, and its scalar code what C does.
        same |= x.isfinite() & y.isfinite() & (x / y).isinf()
    return (~same).nonzero().flatten().tolist()


# -- reductions ------------------------------------------------------------------------------------------------------

_REDUCING = {
    "sum": lambda x, **o: x.sum(**o),
    "mean": lambda x, **o: torch.mean(x, **o),
    "amax": lambda x, **o: x.amax(**o),
    "amin": lambda x, **o: torch.amin(x, **o),
    "count": lambda x, **o: (x > 0).sum(**o),
    "norm": lambda x, **o: x.norm(**o),
    "norm1": lambda x, **o: x.norm(p=1, **o),
    "norm_inf": lambda x, **o: torch.linalg.vector_norm(x, math.inf, **o),
}
REDUCTIONS = {
    f"{name} over {what}": (lambda x, fn=fn, options=options: fn(x, **options), state)
    for name, fn in _REDUCING.items()
    for what, options, state in (
        ("all", {}, scalar),
        ("rows", {"dim": -1}, zeros_without(-1)),
        ("columns", {"dim": -2}, zeros_without(-2)),
    )
    if not (name in ("amax", "amin", "norm_inf") and what == "all")
} | {
    "amax over all": (lambda x: x.amax(), scalar),
    "amin over all": (lambda x: x.amin(), scalar),
    "norm_inf over all": (lambda x: x.norm(p=math.inf), scalar),
    "amax of row sums": (lambda x: x.sum(-1).amax(), scalar),
    "norm3 over rows": (lambda x: x.norm(p=3, dim=-1), zeros_without(-1)),
}


def reducing(grad, param, *state_and_h):
    """A rule whose states become what each reduction gives for the gradient."""
    return (grad * 0.0, *(fn(grad) * 1.0 for fn, _ in REDUCTIONS.values()))


REDUCTION_STATES = {f"s{i}": State(state.init) for i, (_, state) in enumerate(REDUCTIONS.values())}
