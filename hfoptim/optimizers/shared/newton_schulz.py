"""Newton-Schulz iteration: matrices made about orthogonal by products of matrices alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfoptim.engine import Group, hyper
from hfoptim.engine.ambient import float32_products_are_exact
from hfoptim.engine.backends import products
from hfoptim.engine.checks import choice, entries, number

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
    # Grishina, Smirnov and Rakhuba, CANS, arXiv 2506.10935: Remez, intervals that adapt; as NVIDIA has them
    "cans": (
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ),
}
# Boissin et al., Turbo-Muon, arXiv 2512.04632: "quintic" without its first iteration, which `_almost_orthogonal` saves
NS_COEFFICIENTS["turbo"] = NS_COEFFICIENTS["quintic"][1:]

NS_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def orthogonalized(
    matrix: Tensor,
    coefficients: Sequence[Triple],
    eps: Any,
    dtype: torch.dtype,
    safety_factor: float = 1.0,
    almost: bool = False,
) -> Tensor:
    """Newton-Schulz iteration: of the singular value decomposition U S V^T about U V^T.

        X = G / |G|;  then for every (a, b, c):  A = X X^T,  X = a X + (b A + c A^2) X

    Args:
        matrix: G, its last two dimensions; those before them are a batch.
        coefficients: (a, b, c) of every iteration.
        eps: least norm to divide by.
        dtype: what to compute in.
        safety_factor: multiplies the norm.
        almost: bring X closer to an orthogonal matrix before the first iteration.

    Returns:
        X in the dtype of G. Its singular values are near 1, not all equal to 1.
    """
    rows, columns = matrix.shape[-2:]
    norm = matrix.norm(dim=(-2, -1), keepdim=True)
    norm = norm if safety_factor == 1.0 else norm * safety_factor  # a launch on a GPU
    x = torch.div(matrix, norm.clamp(min=eps), out=torch.empty_like(matrix, dtype=dtype))
    x = x.reshape(math.prod(matrix.shape[:-2]), rows, columns)
    x = x.mT if rows > columns else x  # A is the smaller of both products
    x, gram = _almost_orthogonal(x) if almost else (x, products.gram(x))
    # The other way takes fewer operations from this shape on. With coarser products its A is too coarse.
    long = 2 * max(rows, columns) > 3 * min(rows, columns)
    exact = dtype is torch.float64 or (dtype is torch.float32 and float32_products_are_exact(x.device))
    x = (_by_gram if long and exact else _by_matrix)(x, gram, coefficients)
    return (x.mT if rows > columns else x).reshape(matrix.shape).to(matrix.dtype)


def _almost_orthogonal(x: Tensor) -> tuple[Tensor, Tensor]:
    """X with each row divided by the root of its sum in |X X^T|, and its own X X^T (AOL, arXiv 2208.03160).

    No singular value is above 1 then, and they are closer to each other than those of X / |X|.
    """
    gram = products.gram(x)
    scale = gram.abs().sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).rsqrt()
    return x * scale, gram * scale * scale.mT


def _by_matrix(x: Tensor, gram: Tensor, coefficients: Sequence[Triple]) -> Tensor:
    for i, (a, b, c) in enumerate(coefficients):
        gram = products.gram(x) if i else gram
        x = products.product(products.square(gram, b, c), x, a)
    return x


# How wrong an eigenvalue of A that is 0 may have become by rounding; below 0 it would run away.
_GRAM_ERROR = 0.01


def _by_gram(x: Tensor, gram: Tensor, coefficients: Sequence[Triple]) -> Tensor:
    """The same polynomials, of A alone (Gram Newton-Schulz, dao-lab.ai): X itself is multiplied now and then only.

    With Q = a + b A + c A^2 the next X is Q X, so the next A is Q A Q, and all Q together are one square matrix. Every
    step multiplies the rounding errors of A's least eigenvalues by a^2; before they count A is made from X anew.
    """
    one = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    q, factor, error = one, None, torch.finfo(x.dtype).eps
    for a, b, c in coefficients:
        if factor is not None and error <= _GRAM_ERROR:
            gram = products.commuting(products.commuting(q, gram), q)
        elif factor is not None:
            x = factor @ x
            gram, factor, error = products.gram(x), None, torch.finfo(x.dtype).eps
        q = products.commuting(gram, gram, a * one + b * gram, 1.0, c)
        factor = q if factor is None else products.commuting(q, factor)
        error *= a * a
    return x if factor is None else factor @ x


def keeps_dtype(device: torch.device) -> bool:
    """Whether a device multiplies in the dtype given: a CPU, and "meta", where its memory is foretold."""
    return device.type in ("cpu", "meta")


class NewtonSchulz(NamedTuple):
    """Newton-Schulz with all that is fixed for a parameter, but `eps`."""

    coefficients: tuple[Triple, ...]
    dtype: torch.dtype | None
    safety_factor: float
    almost: bool = False

    def __call__(self, matrix: Tensor, eps: Any) -> Tensor:
        # Where nothing is given bfloat16, but on some devices, and for float64, nothing less than the matrix has.
        kept = keeps_dtype(matrix.device) or matrix.dtype is torch.float64
        dtype = self.dtype or (matrix.dtype if kept else torch.bfloat16)
        return orthogonalized(matrix, self.coefficients, eps, dtype, self.safety_factor, self.almost)

    def each(self, matrices: Sequence[Tensor], eps: Any) -> Iterator[Tensor]:
        """Of several matrices or stacks; together where they may be, but on a CPU, which gains nothing from that."""
        alone = matrices[0].device.type == "cpu"
        yield from (self(matrix, eps) for matrix in matrices) if alone else self.together(matrices, eps)

    def together(self, matrices: Sequence[Tensor], eps: Any) -> list[Tensor]:
        """Of several matrices or stacks, those of equal sides in one."""
        wide = [matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix for matrix in matrices]
        alike: dict[torch.Size, list[int]] = {}
        for place, matrix in enumerate(wide):
            alike.setdefault(matrix.shape[-2:], []).append(place)
        done = list(matrices)
        for sides, places in alike.items():
            if len(places) == 1:
                done[places[0]] = self(matrices[places[0]], eps)
                continue
            stacks = [wide[place].reshape(-1, *sides) for place in places]
            parts = self(torch.cat(stacks), eps).split([len(stack) for stack in stacks])
            for place, part in zip(places, parts, strict=True):
                part = part.reshape(wide[place].shape)
                done[place] = part if wide[place] is matrices[place] else part.mT
        return done


def iterations(given: Any, steps: int) -> tuple[Triple, ...]:
    """The coefficients of every iteration, from a group's `ns_coefficients`."""
    triples = NS_COEFFICIENTS[given] if isinstance(given, str) else given if isinstance(given[0], tuple) else (given,)
    return (*triples, *triples[-1:] * (steps - len(triples)))[:steps]


def coefficients(name: str, given: Any) -> Any:
    """The coefficients of Newton-Schulz as they lie in a group: a name, a triple, or a tuple of triples.

    Raises:
        ValueError: what is given is none of these.
    """
    if isinstance(given, str):
        return choice(name, given, NS_COEFFICIENTS)
    listed = entries(given)
    try:
        if listed and all(entries(entry) is None for entry in listed):
            return _triple(listed)
        if listed:
            return tuple(_triple(entry) for entry in listed)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name}={given!r}, expected three numbers, a list of threes, or a name")


def _triple(entry: Any) -> Triple:
    a, b, c = (number("coefficient", each, -math.inf) for each in entries(entry) or ())
    return a, b, c


def dtype_or_name(name: str, given: Any) -> Any:
    """The dtype that Newton-Schulz computes in as it lies in a group: a dtype, its name, or None.

    Raises:
        TypeError, ValueError: what is given is none of these.
    """
    return given if given is None or isinstance(given, torch.dtype) else choice(name, given, tuple(NS_DTYPES))


def newton_schulz_of(group: Group) -> NewtonSchulz:
    """The iteration that a group's options say."""
    dtype, given = group["ns_dtype"], group["ns_coefficients"]
    steps = iterations(given, group["ns_steps"])
    return NewtonSchulz(steps, NS_DTYPES.get(dtype, dtype), group["safety_factor"], given == "turbo")


# Options of the optimizers that make matrices orthogonal.


def coefficients_option(default: str | Triple) -> Any:
    """Declare the option `ns_coefficients`."""
    return hyper(
        default,
        "of Newton-Schulz, three numbers, or a list of threes, one for each iteration, or a name: "
        + ", ".join(f'"{name}"' for name in NS_COEFFICIENTS)
        + '; "turbo", for `ns_steps=4`, brings the matrix closer to an orthogonal one first',
        check=coefficients,
    )


COEFFICIENTS = coefficients_option(NS_COEFFICIENTS["original"][0])
STEPS: int = hyper(5, "iterations of Newton-Schulz", low=1, most=99)
SAFETY_FACTOR: float = hyper(
    1.0, 'multiplies the norm before Newton-Schulz; 1.01 with "polar_express"', above=0.0, in_peers=False
)
DTYPE: torch.dtype | str | None = hyper(
    None,
    "what Newton-Schulz computes in, a dtype or its name. None: bfloat16, but on a CPU the dtype of the step, "
    'float32; "bfloat16" is faster there on processors that multiply it, and exact to about 1 %. Autocast around '
    "`step()` does not change it. What torch computes float32 products in, does: "
    "`torch.set_float32_matmul_precision`, by which they may be tf32 or bfloat16 (about 0.1 % and 1 %), then also "
    "for shapes where Newton-Schulz goes by way of X X^T alone, which is left to exact products",
    check=dtype_or_name,
    in_peers=False,
)
