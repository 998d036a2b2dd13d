"""Scion and Scion-light: steps to the far point of a norm ball, with a norm for every kind of layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    MATRIX,
    TENSOR,
    Decay,
    Group,
    MatrixFunction,
    Name,
    Rule,
    Scalars,
    add_scaled,
    ema,
    hyper,
    original_shape,
    zeros,
)
from hfoptim.engine.checks import flag
from hfoptim.optimizers.shared import newton_schulz
from hfoptim.optimizers.shared.matrices import DividedMatrices, Form, as_matrix, form_of, matrices_of
from hfoptim.optimizers.shared.newton_schulz import NewtonSchulz, Triple, newton_schulz_of

# The norms, with what `norm_kwargs` may say of each.
NORMS: dict[str, dict[str, bool]] = {
    "Auto": {},
    "Spectral": {"normalized": True, "max": False},
    "SpectralConv": {},
    "Sign": {"normalized": True},
    "ColNorm": {"normalized": False, "transpose": False},
    "RowNorm": {"normalized": True, "transpose": False},
    "BiasRMS": {},
}
# Added to the roots of mean squares, and the least norm that Newton-Schulz divides by.
_TINY, _LEAST_NORM = 1e-8, 1e-7


def _rates(t: int, group: Group) -> Scalars:
    return {"alpha": group["momentum"], "kept": 1.0 - group["momentum"], "scale": group["scale"]}


def _far_point(norm: str, options: Mapping[str, bool], form: Form | None, shape: torch.Size) -> Callable[[Any], Any]:
    """The function of a direction that gives the point of the unit ball farthest along it, of norms of entries."""
    if norm == "Sign":
        size = as_matrix(shape)[1] if options["normalized"] and len(shape) > 1 else 1
        return lambda x: x.sign() / size
    if len(shape) < 2:
        return lambda x: x / ((x * x).mean().sqrt() + _TINY)
    rows, columns = as_matrix(shape) if form and form.flattened else shape[-2:]
    transpose, normalized = options.get("transpose", False), options.get("normalized", False)
    rows, columns = (columns, rows) if transpose else (rows, columns)
    by_row = norm == "RowNorm"
    factor = (columns if normalized else math.sqrt(columns)) if by_row else columns if normalized else 1.0
    dim = -1 if by_row is not transpose else -2
    return lambda x: x / ((x * x).mean(dim=dim, keepdim=True).sqrt() * factor + _TINY)


def _told(norm: str, shape: torch.Size) -> torch.Size:
    """What a rule has to know of a shape: the same for as many parameters as may be, which then step together."""
    if len(shape) < 2 or norm == "Spectral":
        return torch.Size()
    return torch.Size((1, 1, *shape[2:])) if norm == "SpectralConv" else shape


def _spectral(options: Mapping[str, bool], form: Form, volume: int, iteration: NewtonSchulz) -> Callable[[Any], Any]:
    """The same of the spectral norm: about the U V^T of a direction's singular value decomposition, times a factor."""

    def scaled(part: Tensor) -> Tensor:
        rows, columns = part.shape[-2], part.shape[-1] / volume
        scale = math.sqrt(rows / columns) if options.get("normalized", True) else math.sqrt(rows)
        return part * ((max(1.0, scale) if options.get("max") else scale) / volume)

    def far_points(stacks: Sequence[Tensor]) -> list[Tensor]:
        return form.all(lambda parts: [scaled(part) for part in iteration.each(parts, _LEAST_NORM)], stacks)

    return MatrixFunction(far_points)


@cache
def scion(
    norm: str,
    kwargs: tuple[tuple[str, bool], ...],
    form: Form | None,
    shape: torch.Size,
    iteration: NewtonSchulz,
    light: bool,
    constrained: bool,
) -> Rule:
    """The rule for parameters of one kind.

    Args:
        norm: one of `NORMS`, but "Auto".
        kwargs: what `norm_kwargs` says of it.
        form: how a parameter is matrices; None for what is none.
        shape: what has to be known of the parameter's (`_told`).
        iteration: makes matrices orthogonal.
        light: the momentum is a sum, not an average.
        constrained: the parameters stay in the ball.
    """
    options = {**NORMS[norm], **dict(kwargs)}
    spectral = norm in ("Spectral", "SpectralConv")
    if spectral and form is not None:
        far_point = _spectral(options, form, math.prod(shape[2:]) if norm == "SpectralConv" else 1, iteration)
    else:
        far_point = _far_point(norm, options, form, shape)

    def fn(grad: Any, param: Any, momentum_buffer: Any, h: Any) -> tuple[Any, Any]:
        momentum = add_scaled(grad, momentum_buffer, h.kept) if light else ema(momentum_buffer, grad, h.alpha)
        update = far_point(momentum) * h.scale
        return (update + param * (1.0 + h.weight_decay) if constrained else update), momentum

    fn.__name__ = "scion"
    scope = MATRIX if spectral else ELEMENT if norm == "Sign" else TENSOR
    flat = form.shape if form is not None and norm != "Sign" else None
    return Rule(fn, scope, {"momentum_buffer": zeros}, _rates, shape=flat)


def _kwargs(name: str, value: Any) -> dict[str, bool]:
    """`norm_kwargs` as it lies in a group: a dict of flags."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}, expected a dict such as {{'normalized': False}}"
        )
    for key, each in value.items():
        flag(f"{name}[{key!r}]", each)
    return {str(key): bool(each) for key, each in value.items()}


class Scion(DividedMatrices):
    """Steps to the far point of a norm ball, by the operator norm that suits each kind of layer; no AdamW beside it.

    With G the gradient, P the parameter, c its scale:

        B = (1 - momentum) B + momentum G
        U = the point X with |X| = 1 in the parameter's norm that has the largest inner product with B
        P = P - lr (c U + P)        (the parameter stays within |P| <= c),  or
        P = P - lr c U              (unconstrained)

    `momentum` is one minus what is elsewhere called so: 1 is none. The norms, for r rows and k columns:

        "Spectral":      U = sqrt(r / k) NewtonSchulz(B), about the U V^T of B's singular value decomposition
        "SpectralConv":  the same of a kernel flattened to rows, by its channels, divided by the positions of the kernel
        "Sign":          U = sign(B) / k
        "ColNorm":       U = B divided by the root mean square of each column
        "RowNorm":       U = B divided by the root mean square of each row, and by k
        "BiasRMS":       U = B divided by its root mean square

    `norm_kwargs` of a group: `normalized` (False: sqrt(r) for sqrt(r / k); sign(B); rows of length 1. "ColNorm" has
    it False by itself, and True divides by k), `max` ("Spectral": a factor of at least 1), `transpose` ("ColNorm",
    "RowNorm": of the transposed matrix, as embeddings are stored).

    "Auto" takes "Spectral" for the matrices inside a network ("SpectralConv" for kernels), "Sign" for embeddings, heads
    and other parameters of two dimensions and more, "BiasRMS" for vectors. Which is which it goes by the names: give
    the model's named parameters. Without names everything of two dimensions and more is a matrix inside, as in the
    authors' code, which leaves the ends to a group of their own. The authors give the first and the last layer a much
    larger scale than the matrices inside (3000 and 50 for a GPT): give each group its `scale`.

    `weight_decay` is there for the unconstrained form; together with the constraint it makes the ball smaller, by
    1 / (1 + weight_decay). The name "scion" has momentum=0.1, which the authors use throughout; the class has their
    default of 1. The authors' `init()`, which draws parameters inside the ball, is not here.

    State: `momentum_buffer` (B).

    Raises:
        ValueError: a spectral norm for a vector, or `norm_kwargs` that the norm has not.
        TypeError: a complex matrix.

    Source:
        Pethick et al., Training Deep Learning Models with Norm-Constrained LMOs, arXiv 2502.07529; LIONS-EPFL/scion,
        which rounds Newton-Schulz to bfloat16. pytorch_optimizer 4.1's SCION has the constraint under the name
        `constraint` and leaves out the weight decay with it. The rule of "Auto" for embeddings and heads is the one the
        authors' examples give by hand.
    """

    hidden_matrices = True
    names = (Name("scion", options={"momentum": 0.1}),)
    lr: float = hyper(1e-3, "learning rate")
    momentum: float = hyper(1.0, "weight of the new gradient in B", above=0.0, most=1.0)
    norm_type: str = hyper("Auto", "the norm", choices=NORMS)
    norm_kwargs: dict[str, bool] | None = hyper(None, "options of the norm, flags by name", check=_kwargs)
    scale: float = hyper(1.0, "the radius c", above=0.0)
    unconstrained: bool = hyper(False, "take the step without the constraint")
    _: KW_ONLY
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    ns_coefficients: str | Triple | Sequence[Triple] = newton_schulz.COEFFICIENTS
    ns_steps: int = newton_schulz.STEPS
    safety_factor: float = newton_schulz.SAFETY_FACTOR
    ns_dtype: torch.dtype | str | None = newton_schulz.DTYPE
    # Whether B is a sum.
    light: ClassVar[bool] = False

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        unknown = [name for name in group["norm_kwargs"] if name not in NORMS[group["norm_type"]]]
        if unknown:
            known = ", ".join(NORMS[group["norm_type"]]) or "none"
            raise ValueError(f"norm_kwargs has {unknown[0]!r}, norm_type={group['norm_type']!r} takes {known}")

    @property
    def wants_matrices(self) -> bool:
        return False

    def check_added(self, group: dict[str, Any]) -> None:
        for param in group["params"]:
            self._kind(param, group)

    def decay_for(self, group: dict[str, Any]) -> Decay:
        return Decay.DECOUPLED if group["unconstrained"] else Decay.INSIDE

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        norm, form = self._kind(param, group)
        kwargs = tuple(sorted(group["norm_kwargs"].items()))
        iteration = newton_schulz_of(group)
        return scion(norm, kwargs, form, _told(norm, param.shape), iteration, self.light, not group["unconstrained"])

    def taken_by(self, param: Tensor, group: dict[str, Any]) -> str:
        norm, form = self._kind(param, group)
        return f"{norm}, {matrices_of(form, param.shape)}" if form is not None and norm.startswith("Spectral") else norm

    def _kind(self, param: Tensor, group: Group) -> tuple[str, Form | None]:
        """The norm of a parameter, and how it is matrices."""
        norm, form, shape = group["norm_type"], None, original_shape(param)
        if norm == "Auto":
            form = self._form_of(param, group)
            hidden = "SpectralConv" if form is not None and form.flattened else "Spectral"
            norm = hidden if form is not None else "Sign" if len(shape) >= 2 else "BiasRMS"
        name, spectral = self.name_of(param, group), norm.startswith("Spectral")
        if spectral and len(shape) < 2:
            raise ValueError(f"norm_type={norm!r} for {name or 'a parameter'} of shape {tuple(shape)}, no matrix")
        if form is None and len(shape) >= 2:
            split = (group["split"], group["split_dim"]) if spectral else (1, None)
            form = form_of(name, shape, True, group["stacked"], *split)
        return norm, form


class ScionLight(Scion):
    """Scion with a sum of gradients for its momentum, which its authors keep where the gradients are.

    With G the gradient, P the parameter, c its scale:

        B = (1 - momentum) B + G
        U = the point X with |X| = 1 in the parameter's norm that has the largest inner product with B
        P = P - lr (c U + P)        (the parameter stays within |P| <= c),  or
        P = P - lr c U              (unconstrained)

    The far point U depends on the direction of B alone, so this is `Scion`, from which it differs by what is added to
    roots and norms of 1 / momentum times the size. Norms, options and names of parameters are the same.

    The authors keep B in `p.grad`, which nobody may zero, clip or unscale then, and so save one tensor of the size of
    the parameters. Here `p.grad` is only read, and is zeroed by its owner at every step as ever: B is a state of its
    own. Where memory counts, `gradient_release=True` lets go of every gradient as soon as it has been added to B,
    which leaves one tensor, too.

    State: `momentum_buffer` (B).

    Raises:
        ValueError: a spectral norm for a vector, or `norm_kwargs` that the norm has not.
        TypeError: a complex matrix.

    Source:
        Pethick et al., arXiv 2502.07529; LIONS-EPFL/scion; pytorch_optimizer 4.1's SCIONLight.
    """

    hidden_matrices = True
    names = (Name("scionlight", options={"momentum": 0.1}),)
    lr: float = hyper(1e-3, "learning rate")
    light = True
