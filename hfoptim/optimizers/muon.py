"""Muon: momentum made orthogonal, for the matrices inside a network, with AdamW for everything else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from hfoptim.engine import ELEMENT, MATRIX, EngineOptions, Rule, RuleOptimizer, bias_correction, ema, nonnegative, zeros
from hfoptim.engine.ambient import float32_products_are_exact
from hfoptim.engine.checks import closest, entries, flag, integer, number
from hfoptim.engine.optimizer import EngineOptimizer
from hfoptim.engine.parameter_names import bare
from hfoptim.optimizers.shared.moments import corrected, moments, moments_step
from hfoptim.param_groups.selection import is_hidden_matrix

Triple = tuple[float, float, float]

# Coefficients (a, b, c) of one iteration each; the last of a list serves all further ones.
NS_COEFFICIENTS: dict[str, tuple[Triple, ...]] = {
    # Jordan, kellerjordan.github.io/posts/muon
    "original": ((3.4445, -4.7750, 2.0315),),
    # Cesista, leloykun.github.io/ponder/muon-opt-coeffs
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # Amsel et al., Polar Express, arXiv 2505.16932; give safety_factor 1.01 with them
    "polar_express": (
        (8.237312490495555, -23.157747414558198, 16.680568411445915),
        (4.082441999064835, -2.893047735332586, 0.5252849256975648),
        (3.9263479922546582, -2.8547468034765298, 0.5318022422894988),
        (3.2982187133085143, -2.424541981026706, 0.48632008358844075),
        (2.2970369434552573, -1.63662558125903, 0.4002628455953627),
        (1.8763805351440397, -1.2347896577722228, 0.35891887501668385),
        (1.8564423485617974, -1.2132449880935525, 0.3568003487825883),
        (1.8749994008682747, -1.2499988017229169, 0.3749994008546422),
    ),
    # The same with a larger margin, as modded-nanogpt has them
    "polar_express_safer": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.0429299351667245, -2.808917465908704, 0.5000178451051299),
        (3.8916678022926563, -2.7724841532176825, 0.5060648178503389),
        (3.285753657755658, -2.3681294933425394, 0.46449024233003117),
        (2.3005307116270983, -1.6111665557258408, 0.3833374427545273),
        (1.8631210546382593, -1.2042160621002727, 0.3421879560523383),
        (1.8382572152247512, -1.1779263289537742, 0.3396513038637379),
        (1.8749999923301852, -1.2499999836060613, 0.374999991275876),
    ),
}

# What an update of so many rows and columns is multiplied by.
LR_SCALES = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "rms_to_rms": lambda rows, columns: math.sqrt(rows / columns),
    "rsqrt_in": lambda rows, columns: 1.0 / math.sqrt(columns),
}

NS_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}

# Names of matrices that make queries, keys and values at once, one after the other.
_FUSED_QKV = re.compile(r"(^|[._])(c_attn|w?qkv|in_proj_weight)([._]|$)", re.IGNORECASE)


def orthogonalized(
    matrix: Tensor, coefficients: Sequence[Triple], eps: Any, dtype: torch.dtype, safety_factor: float = 1.0
) -> Tensor:
    """Newton-Schulz iteration: of the singular value decomposition U S V^T about U V^T.

        X = G / |G|;  then for every (a, b, c):  A = X X^T,  X = a X + (b A + c A^2) X

    Args:
        matrix: G, its last two dimensions; those before them are a batch.
        coefficients: (a, b, c) of every iteration.
        eps: least norm to divide by.
        dtype: what to compute in.
        safety_factor: multiplies the norm.

    Returns:
        X in the dtype of G. Its singular values are near 1, not all equal to 1.
    """
    rows, columns = matrix.shape[-2:]
    norm = matrix.norm(dim=(-2, -1), keepdim=True) * safety_factor
    x = (matrix / norm.clamp(min=eps)).to(dtype).reshape(math.prod(matrix.shape[:-2]), rows, columns)
    x = x.mT if rows > columns else x  # A is the smaller of both products
    # The other way takes fewer operations from this shape on. With coarser products its A is too coarse.
    long = 2 * max(rows, columns) > 3 * min(rows, columns)
    exact = dtype is torch.float64 or (dtype is torch.float32 and float32_products_are_exact(x.device))
    x = _by_gram(x, coefficients) if long and exact else _by_matrix(x, coefficients)
    return (x.mT if rows > columns else x).reshape(matrix.shape).to(matrix.dtype)


def _by_matrix(x: Tensor, coefficients: Sequence[Triple]) -> Tensor:
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


# How wrong an eigenvalue of A that is 0 may have become by rounding; below 0 it would run away.
_GRAM_ERROR = 0.01


def _by_gram(x: Tensor, coefficients: Sequence[Triple]) -> Tensor:
    """The same polynomials, of A alone (Gram Newton-Schulz, dao-lab.ai): X itself is multiplied now and then only.

    With Q = a + b A + c A^2 the next X is Q X, so the next A is Q A Q, and all Q together are one square matrix. Every
    step multiplies the rounding errors of A's least eigenvalues by a^2; before they count A is made from X anew.
    """
    one = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    gram, q, factor, error = x @ x.mT, one, None, torch.finfo(x.dtype).eps
    for a, b, c in coefficients:
        if factor is not None and error <= _GRAM_ERROR:
            gram = q @ gram @ q
        elif factor is not None:
            x = factor @ x
            gram, factor, error = x @ x.mT, None, torch.finfo(x.dtype).eps
        q = torch.baddbmm(a * one + b * gram, gram, gram, alpha=c)
        factor = q if factor is None else q @ factor
        error *= a * a
    return x if factor is None else factor @ x


def _ns_dtype(given: torch.dtype | None, update: Tensor) -> torch.dtype:
    """What Newton-Schulz computes in: where nothing is given bfloat16, but on a CPU, and for float64, nothing less."""
    if given is not None:
        return given
    return update.dtype if update.device.type == "cpu" or update.dtype is torch.float64 else torch.bfloat16


class _Form(NamedTuple):
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
        if not self.parts:
            return function(matrix)
        dim = -1 if self.across else -2
        return torch.cat([function(part) for part in matrix.split(self.parts, dim)], dim)

    @property
    def shape(self) -> Callable[[torch.Size], tuple[int, ...]] | None:
        return _flattened if self.flattened else None


def _flattened(shape: torch.Size) -> tuple[int, ...]:
    return shape[0], math.prod(shape[1:])


class _Iteration(NamedTuple):
    """Newton-Schulz iteration with all that is fixed for a parameter, but `eps`."""

    coefficients: tuple[Triple, ...]
    dtype: torch.dtype | None
    safety_factor: float

    def __call__(self, matrix: Tensor, eps: Any) -> Tensor:
        return orthogonalized(matrix, self.coefficients, eps, _ns_dtype(self.dtype, matrix), self.safety_factor)


def _ahead(grad: Any, momentum_buffer: Any, nesterov: bool, h: Any) -> tuple[Any, Any]:
    """(what is made orthogonal, the new momentum)."""
    momentum_buffer = ema(momentum_buffer, grad, h.alpha)
    return ema(grad, momentum_buffer, h.momentum) if nesterov else momentum_buffer, momentum_buffer


def _rates(t: int, group: Mapping[str, Any]) -> dict[str, float]:
    return {"alpha": 1.0 - group["momentum"], "momentum": group["momentum"], "eps": group["eps"]}


@cache
def muon(form: _Form, iteration: _Iteration, nesterov: bool, scale: str) -> Rule:
    """The rule for matrices of one form: the momentum made orthogonal, times a factor that follows from its shape."""

    def direction(part: Tensor, eps: Any) -> Tensor:
        return iteration(part, eps) * LR_SCALES[scale](*part.shape[-2:])

    def fn(grad: Any, param: Any, momentum_buffer: Any, h: Any) -> tuple[Any, Any]:
        update, momentum_buffer = _ahead(grad, momentum_buffer, nesterov, h)
        return form.each(lambda part: direction(part, h.eps), update), momentum_buffer

    fn.__name__ = "muon"
    return Rule(fn, MATRIX, {"momentum_buffer": zeros}, _rates, shape=form.shape)


def _adaptive_rates(t: int, group: Mapping[str, Any]) -> dict[str, float]:
    beta2 = group["betas"][1]
    # An update that is brought to one size needs no bias correction.
    root = 1.0 if group["adjust_lr_fn"] == "match_rms_adamw" else math.sqrt(bias_correction(beta2, t))
    return {**_rates(t, group), "alpha2": 1.0 - beta2, "inverse_root": 1.0 / root}


@cache
def adamuon(form: _Form, iteration: _Iteration, nesterov: bool, scale: str) -> Rule:
    """Muon's direction divided by the root of the moving average of its square, entry by entry."""

    def sized(part: Tensor, eps: Any) -> Tensor:
        if scale == "match_rms_adamw":
            size = part.norm(dim=(-2, -1), keepdim=True) + eps
            return part * (0.2 * math.sqrt(part.shape[-2] * part.shape[-1]) / size)
        return part * LR_SCALES[scale](*part.shape[-2:])

    def fn(grad: Any, param: Any, momentum_buffer: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
        update, momentum_buffer = _ahead(grad, momentum_buffer, nesterov, h)
        update = form.each(lambda part: iteration(part, h.eps), update)
        exp_avg_sq = ema(exp_avg_sq, update * update, h.alpha2)
        update = update / (exp_avg_sq.sqrt() * h.inverse_root + h.eps)
        return form.each(lambda part: sized(part, h.eps), update), momentum_buffer, exp_avg_sq

    fn.__name__ = "adamuon"
    return Rule(fn, MATRIX, {"momentum_buffer": zeros, "exp_avg_sq": nonnegative}, _adaptive_rates, shape=form.shape)


ALGORITHMS = {"muon": muon, "adamuon": adamuon}


def _fallback_rates(t: int, group: Mapping[str, Any]) -> dict[str, float]:
    scalars, scale = corrected(t, group), group["fallback_lr_scale"]
    return {**scalars, "lr": scalars["lr"] * scale, "decay": float(group["lr"]) * scale * group["weight_decay"]}


def _nesterov_moments_step(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Adam's update with the gradient taken into the first moment once more, as the mlcommons NAdamW has it."""
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
    return ema(exp_avg, grad, h.alpha1) / (exp_avg_sq.sqrt() + h.eps), exp_avg, exp_avg_sq


# What takes the parameters that are no hidden matrices.
FALLBACKS = {
    name: Rule(fn, ELEMENT, {"exp_avg": zeros, "exp_avg_sq": nonnegative}, _fallback_rates)
    for name, fn in (("adamw", moments_step), ("nadamw", _nesterov_moments_step))
}


class _Route(NamedTuple):
    """What is done with a parameter, and the options and the name it follows from."""

    asked: tuple[Any, ...]
    form: _Form | None


def _triples(given: Any, steps: int) -> tuple[Triple, ...]:
    """The coefficients of every iteration, from a group's `ns_coefficients`."""
    triples = NS_COEFFICIENTS[given] if isinstance(given, str) else given if isinstance(given[0], tuple) else (given,)
    return (*triples, *triples[-1:] * (steps - len(triples)))[:steps]


def _coefficients(given: Any) -> Any:
    """The coefficients of Newton-Schulz as they lie in a group: a name, a triple, or a tuple of triples.

    Raises:
        ValueError: what is given is none of these.
    """
    if isinstance(given, str):
        if given not in NS_COEFFICIENTS:
            raise ValueError(f"ns_coefficients={given!r} is no name of coefficients; {closest(given, NS_COEFFICIENTS)}")
        return str(given)
    listed = entries(given)
    try:
        if listed and all(entries(entry) is None for entry in listed):
            return _triple(listed)
        if listed:
            return tuple(_triple(entry) for entry in listed)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"ns_coefficients={given!r}, expected three numbers, a list of threes, or a name")


def _triple(entry: Any) -> Triple:
    a, b, c = (number("coefficient", each, -math.inf) for each in entries(entry) or ())
    return a, b, c


def _form(name: str | None, shape: torch.Size, stacked: bool | None, qkv_split: Any) -> _Form:
    """How a hidden matrix of that name and shape is taken.

    Raises:
        ValueError: `qkv_split` does not divide it.
    """
    if stacked is None:
        stacked = name is not None and "expert" in name.lower()
    flattened = len(shape) > 2 and not stacked
    rows, columns = _flattened(shape) if flattened else shape[-2:]
    if qkv_split is None:
        fused = name is not None and _FUSED_QKV.search(bare(name)) and max(rows, columns) == 3 * min(rows, columns)
        qkv_split = 3 if fused else 1
    if isinstance(qkv_split, tuple):
        parts, across = qkv_split, sum(qkv_split) != rows
    else:
        across = columns > rows
        parts = (max(rows, columns) // qkv_split,) * qkv_split
    if sum(parts) != (columns if across else rows):
        raise ValueError(f"qkv_split={qkv_split!r} does not divide {name or 'a parameter'} of shape {tuple(shape)}")
    return _Form(flattened, parts, across) if len(parts) > 1 else _Form(flattened)


class Muon(RuleOptimizer):
    """Momentum made orthogonal for the matrices inside a network, AdamW for everything else, in one optimizer.

    With G the gradient, P the parameter, a matrix of r rows and c columns:

        B = momentum B + (1 - momentum) G
        U = (1 - momentum) G + momentum B with nesterov, else B
        O = NewtonSchulz(U), about the U V^T of its singular value decomposition
        P = P - lr s O - lr weight_decay P,  s = sqrt(max(1, r / c)) or 0.2 sqrt(max(r, c)) ("match_rms_adamw")

    and with `algo="adamuon"` (AdaMuon), D in place of s O:

        V = beta2 V + (1 - beta2) O^2
        D = 0.2 sqrt(r c) Q / |Q|,  Q = O / (sqrt(V) + eps) ("match_rms_adamw")
        D = s O / (sqrt(V / (1 - beta2^t)) + eps) (else)

    Everything else, p with the moments m and v, takes AdamW's step with lr f, f = `fallback_lr_scale`:

        p = p - lr f (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)) - lr f weight_decay p

    State: `momentum_buffer` (B), `exp_avg_sq` (V); for everything else `exp_avg` (m), `exp_avg_sq` (v). A state_dict of
    torch.optim.Muon loads, and one of timm's Muon.

    Hidden matrices are found by name: give the model's named parameters. Embeddings, heads, norms, biases, what has a
    side of 1 (depthwise convolutions, position tables) are never taken for one. `param_groups_muon(model)` makes groups
    that know more, tied weights for example; creation by name from a model and the Trainer use it. A group's `use_muon`
    decides for all of its parameters. Without names and without `use_muon` the parameters must all be matrices, picked
    by hand as for torch.optim.Muon; a mix with vectors is refused, for it would hold embeddings.

    Kernels of convolutions are flattened to (out, in * height * width); stacks of matrices (experts) are taken one by
    one; matrices that make queries, keys and values at once are divided into the three.

    The class has torch's defaults, which mean an lr near 0.02. The name "muon" stands for
    `adjust_lr_fn="match_rms_adamw"`: then lr and weight decay are those one would give AdamW, and both kinds of
    parameters share them. "nmuon" is timm's name for that with NAdamW for everything else, "adamuon" and "nadamuon" are
    those of AdaMuon.

    Args:
        params: named parameters, parameters, or dicts that define parameter groups.
        lr (default 1e-3): learning rate.
        weight_decay (0.1): decoupled weight decay, per step and unit of lr.
        momentum (0.95): decay rate of B, in [0, 1).
        nesterov (True): look one step ahead.
        ns_coefficients ((3.4445, -4.775, 2.0315)): of Newton-Schulz, three numbers, or a list of threes, one for each
            iteration, or a name: "original", "quintic", "polar_express", "polar_express_safer".
        eps (1e-7): least norm that Newton-Schulz divides by; AdamW's and AdaMuon's eps.
        ns_steps (5): iterations of Newton-Schulz, below 100.
        adjust_lr_fn (None): the factor s: "original" (also None), "match_rms_adamw", "rms_to_rms" (sqrt(r / c)) or
            "rsqrt_in" (1 / sqrt(c)).
        betas ((0.9, 0.95)): AdamW's decay rates; the second is also that of AdaMuon's V.
        fallback ("adamw"): "adamw", or "nadamw" with Nesterov's momentum in it.
        fallback_lr_scale (1.0): the factor f of lr for everything else.
        safety_factor (1.0): multiplies the norm before Newton-Schulz, > 0; 1.01 with "polar_express".
        algo ("muon"): "muon" or "adamuon".
        use_muon (None): whether a group's parameters are hidden matrices; None decides by their names and shapes.
        qkv_split (None): into what a matrix is divided before Newton-Schulz: a number of equal parts of its longer
            side, or the sizes of the parts of either side; 1 for no division. None: three parts where the name says so
            (`c_attn`, `qkv`, `in_proj_weight`) and the longer side is three times the other.
        stacked (None): whether parameters of three dimensions are stacks of matrices rather than kernels; None: where
            the name says "expert".
        ns_dtype (None): what Newton-Schulz computes in, a dtype or its name. None: bfloat16, but on a CPU the dtype of
            the step, float32; "bfloat16" is faster there on processors that multiply it, and exact to about 1 %.
            Autocast around `step()` does not change it. What torch computes float32 products in, does:
            `torch.set_float32_matmul_precision`, by which they may be tf32 or bfloat16 (about 0.1 % and 1 %), then also
            for shapes where Newton-Schulz goes by way of X X^T alone, which is left to exact products.
        **options: `maximize`, `foreach`, `fused`, `caution`, `kahan_sum`, see `RuleOptimizer`. Equal shapes are
            orthogonalised together, with `foreach=False` one at a time.

    Raises:
        ValueError: a hyper-parameter out of range, no hidden matrix among the parameters, one with fewer than two
            dimensions, or parameters that need names and have none.
        TypeError: a hyper-parameter of the wrong type, an unknown option, or a complex matrix.

    Source:
        Jordan et al., kellerjordan.github.io/posts/muon; Liu et al., Muon is Scalable for LLM Training, arXiv
        2502.16982; torch.optim.Muon, timm's Muon. Between them this follows torch; Jordan's code differs by its
        rounding in bfloat16. AdamW for everything else is Jordan's choice, timm takes NAdamW where nesterov is on.
        Si, Zhang and Shen, AdaMuon, arXiv 2507.11005, as timm has it: the authors' code takes the signs of B before
        Newton-Schulz, and `momentum` for beta2.
    """

    numbers = ("eps", "weight_decay", "fallback_lr_scale")
    absent_from_peers = frozenset({"betas", "fallback", "fallback_lr_scale", "safety_factor", "algo"}) | {
        *("use_muon", "qkv_split", "stacked", "ns_dtype")
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: str | Triple | Sequence[Triple] = NS_COEFFICIENTS["original"][0],
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        fallback: str = "adamw",
        fallback_lr_scale: float = 1.0,
        safety_factor: float = 1.0,
        algo: str = "muon",
        use_muon: bool | None = None,
        qkv_split: int | Sequence[int] | None = None,
        stacked: bool | None = None,
        ns_dtype: torch.dtype | str | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "betas": betas,
            "fallback": fallback,
            "fallback_lr_scale": fallback_lr_scale,
            "safety_factor": safety_factor,
            "algo": algo,
            "use_muon": use_muon,
            "qkv_split": qkv_split,
            "stacked": stacked,
            "ns_dtype": ns_dtype,
        }
        self._routes: dict[Tensor, _Route] = {}
        EngineOptimizer.__init__(self, params, defaults, **options)
        if not any(self._form_of(param, group) for group in self.param_groups for param in group["params"]):
            count = sum(len(group["params"]) for group in self.param_groups)
            raise ValueError(
                f"none of the {count} parameters is a matrix inside a network, all would get {fallback}; give the "
                f"names of the whole model's parameters, or use_muon=True in the group of its matrices"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._routes = {}
        super().__setstate__(state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, after a look at what in it is a hidden matrix."""
        super().add_param_group(param_group)
        try:
            for param in self.param_groups[-1]["params"]:
                self._form_of(param, self.param_groups[-1])
            self._refuse_guesses()
        except ValueError:
            self.param_groups.pop()
            raise

    def _refuse_guesses(self) -> None:
        unknown = [
            param
            for group in self.param_groups
            if group["use_muon"] is None and "param_names" not in group
            for param in group["params"]
        ]
        if len({param.ndim >= 2 for param in unknown}) == 2:
            raise ValueError(
                f"{type(self).__name__} cannot tell embeddings and heads from the matrices inside the network: the "
                f"parameters have no names. Give model.named_parameters(), or hfoptim.param_groups_muon(model), or "
                f"groups with use_muon=True and use_muon=False"
            )

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        group["momentum"] = number("momentum", group["momentum"], 0.0, 1.0)
        flag("nesterov", group["nesterov"])
        group["ns_steps"] = integer("ns_steps", group["ns_steps"], 1)
        if group["ns_steps"] > 99:
            raise ValueError(f"ns_steps={group['ns_steps']!r} is out of range, expected fewer than 100")
        group["ns_coefficients"] = _coefficients(group["ns_coefficients"])
        group["adjust_lr_fn"] = _one_of("adjust_lr_fn", group["adjust_lr_fn"], LR_SCALES, optional=True)
        group["fallback"] = _one_of("fallback", group["fallback"], FALLBACKS)
        group["algo"] = _one_of("algo", group["algo"], ALGORITHMS)
        group["safety_factor"] = number("safety_factor", group["safety_factor"])
        if group["safety_factor"] == 0.0:
            raise ValueError("safety_factor=0 is out of range, expected a number above 0")
        flag("use_muon", group["use_muon"], optional=True)
        flag("stacked", group["stacked"], optional=True)
        parts = entries(group["qkv_split"])
        if parts is not None:
            group["qkv_split"] = tuple(integer("qkv_split", part, 1) for part in parts)
        elif group["qkv_split"] is not None:
            group["qkv_split"] = integer("qkv_split", group["qkv_split"], 1)
        if not isinstance(group["ns_dtype"], torch.dtype):
            group["ns_dtype"] = _one_of("ns_dtype", group["ns_dtype"], NS_DTYPES, optional=True)

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        form = self._form_of(param, group)
        if form is None:
            return FALLBACKS[group["fallback"]]
        dtype = group["ns_dtype"]
        iteration = _Iteration(
            _triples(group["ns_coefficients"], group["ns_steps"]), NS_DTYPES.get(dtype, dtype), group["safety_factor"]
        )
        return ALGORITHMS[group["algo"]](form, iteration, group["nesterov"], group["adjust_lr_fn"] or "original")

    def _form_of(self, param: Tensor, group: dict[str, Any]) -> _Form | None:
        """How a parameter is matrices; None for what is no hidden matrix."""
        # A loaded state_dict may bring names.
        asked = group["use_muon"], group["stacked"], group["qkv_split"], "param_names" in group
        route = self._routes.get(param)
        if route is None or route.asked != asked:
            if len(self._routes) > 2 * sum(len(other["params"]) for other in self.param_groups):
                self._routes.clear()  # parameters were exchanged, as FSDP does
            names = group.get("param_names") or [None] * len(group["params"])
            for name, member in zip(names, group["params"], strict=True):
                self._routes[member] = _Route(asked, _routed(name, member, *asked[:3]))
            route = self._routes[param]
        return route.form

    def ignores_peer_flag(self, name: str, value: Any, group: dict[str, Any]) -> bool:
        if name == "conv_mode":  # timm's, whose choice for everything else follows nesterov
            return value == "flatten" and (group["fallback"] == "nadamw") is bool(group["nesterov"])
        return name in ("normalize_spatial", "verbose") or (name == "scale_eps" and value is False)

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        state = {name: value for name, value in state.items() if name != "use_muon"}
        # Nothing follows from the number of Muon's own steps, so neither torch nor timm counts them.
        counts = "momentum_buffer" not in state or group["algo"] != "muon"
        return state if counts else {"step": 1.0, **state}


def _routed(
    name: str | None, param: Tensor, use_muon: bool | None, stacked: bool | None, qkv_split: Any
) -> _Form | None:
    if use_muon is None:
        use_muon = param.ndim >= 2 if name is None else is_hidden_matrix(name, param.shape)
    if not use_muon:
        return None
    if param.ndim < 2:
        raise ValueError(f"use_muon=True for {name or 'a parameter'} of shape {tuple(param.shape)}, which is no matrix")
    return _form(name, param.shape, stacked, qkv_split)


def _one_of(name: str, value: Any, known: Mapping[str, Any], optional: bool = False) -> str | None:
    if value is None and optional:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, expected one of {', '.join(known)}")
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known; {closest(value, known)}")
    return str(value)
