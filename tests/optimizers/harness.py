"""Parameters in every layout, reproducible gradients, and how two runs are compared."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hfoptim.engine import Rule, RuleOptimizer, hyper

Make = Callable[[torch.Generator, torch.dtype], Tensor]
Params = dict[str, nn.Parameter]


def _shape(*shape: int) -> Make:
    return lambda g, dtype: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


def _transposed(g: torch.Generator, dtype: torch.dtype) -> Tensor:
    return _shape(3, 5)(g, dtype).t()


def _channels_last(g: torch.Generator, dtype: torch.dtype) -> Tensor:
    return _shape(4, 3, 2, 5)(g, dtype).contiguous(memory_format=torch.channels_last)


def _gaps(g: torch.Generator, dtype: torch.dtype) -> Tensor:
    return _shape(6, 8)(g, dtype)[:, ::2]


# Name -> parameter. The gradient has the parameter's layout, save where the name is in OTHER_GRADIENT.
LAYOUTS: dict[str, Make] = {
    "scalar": _shape(),
    "one": _shape(1),
    "vector": _shape(7),
    "matrix": _shape(5, 3),
    "row": _shape(1, 6),
    "column": _shape(6, 1),
    "conv": _shape(4, 3, 2, 5),
    "transposed": _transposed,
    "channels_last": _channels_last,
    "mixed": _shape(4, 3, 3, 2),
    "gaps": _gaps,
    "expanded": _shape(4, 3),
    # More entries than the compiled runner packs together with others, and no multiple of anything.
    "large": _shape(211, 173),
    # Sizes on both sides of timm's limit of 16 for factoring.
    "wide": _shape(17, 20),
    "narrow": _shape(16, 20),
    "conv_wide": _shape(18, 20, 3, 2),
    "stack": _shape(3, 17, 19),
    # More entries than state must have to be compressed, in rows that are too short for blocks of their own.
    "short_rows": _shape(83, 60),
    # More entries than state must have to be compressed, in no rows.
    "long": _shape(5001),
    # Names that an optimizer may go by; a model of width 4 with heads of 2, and one of them for the keys.
    "embed.weight": _shape(7, 4),
    "q_proj.weight": _shape(4, 4),
    "k_proj.weight": _shape(2, 4),
    "v_proj.weight": _shape(2, 4),
    "o_proj.weight": _shape(4, 4),
    "mlp.weight": _shape(6, 4),
    "mlp.bias": _shape(6),
    "norm.weight": _shape(4),
    "lm_head.weight": _shape(7, 4),
    "q_proj.large": _shape(104, 79),
    "mlp.large": _shape(83, 97),
    # Both factors of two adapters.
    "q_proj.lora_A.weight": _shape(3, 7),
    "q_proj.lora_B.weight": _shape(5, 3),
    "o_proj.lora_A.weight": _shape(2, 4),
    "o_proj.lora_B.weight": _shape(6, 2),
}
OTHER_GRADIENT: dict[str, Callable[[Tensor], Tensor]] = {
    "mixed": lambda grad: grad.contiguous(memory_format=torch.channels_last),
    "gaps": lambda grad: torch.stack([grad, grad], -1).flatten(-2)[:, ::2],
    "expanded": lambda grad: grad[:1].expand_as(grad),
}

SMALL = (
    *("scalar", "one", "vector", "matrix", "row", "column", "conv"),
    *("transposed", "channels_last", "mixed", "gaps", "expanded"),
)


def optimizer_of(chosen: Rule) -> type[RuleOptimizer]:
    """An optimizer with a rule that is in no catalogue, and with decoupled weight decay."""

    class Custom(RuleOptimizer):
        rule = chosen
        lr: float = hyper(1e-2, "learning rate")
        weight_decay: float = hyper(0.0, "weight decay")

    return Custom


def parameters(
    layouts: Iterable[str] = SMALL, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, nn.Parameter]:
    """Leaf parameters by name. Their values depend on the seed and the name alone, not on what else is asked for."""
    made = {}
    for name in layouts:
        g = torch.Generator().manual_seed(1_000_003 * seed + sum(map(ord, name)))
        made[name] = nn.Parameter(LAYOUTS[name](g, dtype))
    return made


def feed(
    params: Mapping[str, Tensor], t: int, follow: Mapping[str, Tensor] | None = None, only: Iterable[str] | None = None
) -> None:
    """Set the gradients of step `t`: noise of changing size, some exact zeros, and a pull towards 0.

    Args:
        params: by name; parameters not in `only` get no gradient.
        t: which step; the noise depends on it and on the name alone.
        follow: parameters the pull is computed from (default: `params`), so that two runs get equal gradients.
        only: names that get one; None for all.
    """
    follow = params if follow is None else follow
    for name, param in params.items():
        if only is not None and name not in only:
            param.grad = None
            continue
        grad = torch.empty_like(param).copy_(_noise(name, t, param.shape, param.is_complex()))
        grad.add_(follow[name].detach(), alpha=PULL)
        param.grad = OTHER_GRADIENT.get(name, lambda x: x)(grad)


# Not a weight decay of any test: the two would cancel and leave rounding noise, which Adam blows up to a full step.
PULL = 0.17


@cache
def _noise(name: str, t: int, shape: torch.Size, is_complex: bool) -> Tensor:
    g = torch.Generator().manual_seed(7919 * t + sum(map(ord, name)))
    noise = torch.randn(shape, generator=g, dtype=torch.complex128 if is_complex else torch.float64)
    noise = noise * 10.0 ** float(torch.empty(()).uniform_(-1.5, 1.0, generator=g))
    return noise * (torch.rand(shape, generator=g) > 0.1)


def lr_at(lr: float, t: int) -> float:
    """A learning rate that changes at every step."""
    return lr * (1.0 - 0.3 * ((t * 7) % 5) / 5)


def set_lr(optimizer: Any, t: int, base: float | None) -> None:
    """Give every group the learning rate of step `t`; None leaves it to the optimizer."""
    if base is not None:
        for group in optimizer.param_groups:
            group["lr"] = lr_at(base, t)


def train(
    optimizer: Optimizer, params: Mapping[str, Tensor], steps: Iterable[int], lr: float | None = None, **feeding: Any
) -> None:
    """Take the given steps with `feed`'s gradients, and `lr` as it changes, if given."""
    for t in steps:
        set_lr(optimizer, t, lr)
        feed(params, t, **feeding)
        optimizer.step()


def values(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the parameters' values."""
    return {name: param.detach().clone() for name, param in params.items()}


def flattened(params: Mapping[str, Tensor]) -> Tensor:
    """All values as one vector: a row of what `assert_follows` compares."""
    return torch.cat([param.detach().reshape(-1) for param in params.values()])


def assert_follows(
    ours: list[Tensor], theirs: list[Tensor], start: Mapping[str, Tensor], tolerance: float, first: int = 1
) -> None:
    """After every step each parameter is where it is in the other run, within a share of how far that has come.

    A few units in the last place of the value itself are forgiven: no more can be kept of a small step.

    Args:
        ours, theirs: `flattened` parameters, one row per step.
        start: parameters before the first step.
        tolerance: largest difference, as a share of the movement since the start.
        first: number of the first row's step, for the message.
    """
    got, want = torch.stack(ours), torch.stack(theirs)
    assert got.shape == want.shape
    assert torch.isfinite(want.abs()).all()
    sizes = [param.numel() for param in start.values()]
    rows = zip(start, got.split(sizes, 1), want.split(sizes, 1), flattened(start).split(sizes), strict=True)
    for name, mine, other, begin in rows:
        difference = (mine - other).abs().amax(1)
        moved, size = (other - begin).abs().amax(1), other.abs().amax(1)
        bad = ~(difference <= tolerance * moved + 32 * torch.finfo(want.dtype).eps * size)
        if bad.any():
            i = int(bad.nonzero()[0])
            raise AssertionError(
                f"step {first + i}: {name} differs by {difference[i]:.3g}, it moved by {moved[i]:.3g} "
                f"({difference[i] / moved[i]:.2g})"
            )


def assert_moved(params: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
    """Every parameter has left its start: what was compared is not two optimizers that do nothing."""
    for name, param in params.items():
        assert not torch.equal(param.detach(), start[name]), f"{name} has not moved"


def assert_same(ours: Any, theirs: Any, path: str = "") -> None:
    """Two parameters, states or state_dicts are equal bit for bit, types and dtypes included."""
    if isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor), path
        assert ours.dtype == theirs.dtype, (path, ours.dtype, theirs.dtype)
        assert torch.equal(ours.detach(), theirs.detach()), path
    elif isinstance(theirs, Mapping):
        assert set(ours) == set(theirs), f"{path} has other keys: {sorted(map(str, set(ours) ^ set(theirs)))}"
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is type(theirs), path
        assert len(ours) == len(theirs), path
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    else:
        assert type(ours) is type(theirs), (path, ours, theirs)
        assert ours == theirs or (ours != ours and theirs != theirs), (path, ours, theirs)


def through_disk(state_dict: Any) -> Any:
    """The state_dict as torch.save writes it and torch.load reads it, without leave to unpickle arbitrary objects."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def snapshot(optimizer: Optimizer, params: Mapping[str, Tensor]) -> Any:
    """All that must not change when something is refused."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    state = [
        {k: copy.deepcopy(v) for k, v in optimizer.state[p].items()} for p in params.values() if p in optimizer.state
    ]
    return copy.deepcopy(groups), state, values(params)


def assert_goes_on_like(ours: Any, mine: Any, theirs: Any, other: Any, steps: Iterable[int], tolerance: float) -> None:
    """Two optimizers, fed alike from equal parameters, stay together after every one of the steps.

    Args:
        ours, mine: an optimizer and its parameters by name.
        theirs, other: the one to follow.
        steps: their numbers, which decide the gradients.
        tolerance: of the movement.
    """
    start = values(mine)
    rows: tuple[list[Any], list[Any]] = ([], [])
    for t in steps:
        feed(mine, t, follow=other)
        feed(other, t)
        ours.step()
        theirs.step()
        rows[0].append(flattened(mine))
        rows[1].append(flattened(other))
    assert_follows(*rows, start, tolerance)
