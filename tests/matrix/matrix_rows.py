"""The rows of the matrix: every name of the catalogue, wrappers, and optimizers of torch's as a control group.

What a row knows is what torch's OptimizerInfo knows of torch's optimizers: how one is made, which options it is tried
with, and whether its step needs a closure. The control group shows that a test asks for what torch's optimizers do.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from cases import ENTRIES
from matrix_exemptions import EXEMPTIONS
from tiers import kind_of_name
from torch import Tensor, nn
from torch.optim import Optimizer

import hfoptim
from hfoptim import registry
from hfoptim.engine import RuleOptimizer, unwrap_all

Params = dict[str, nn.Parameter]

# What backward(create_graph=True) warns of: zero_grad() at every step breaks the cycle.
warnings.filterwarnings("ignore", message="Using backward")


@dataclass(frozen=True, eq=False)
class Row:
    """One optimizer.

    Args:
        name: of the catalogue, or `torch.` and a class of torch.optim.
        cls: its class.
        closure: whether its step needs a closure.
        second_order: whether gradients need a graph.
        hidden_matrices: whether it has to be told which parameters are matrices inside the network.
        bound: the options that its name stands for.
        sparse: whether it takes no gradients but sparse ones.
    """

    name: str
    cls: type[Optimizer]
    closure: bool
    second_order: bool = False
    hidden_matrices: bool = False
    bound: Mapping[str, Any] = field(default_factory=dict)
    sparse: bool = False

    @functools.cached_property
    def variants(self) -> list[dict[str, Any]]:
        """Options that the class's other tests use, without those that contradict what the name stands for."""
        entry = next((entry for entry in ENTRIES if entry.cls is self.cls), None)
        return [
            {**variant.options}
            for variant in (entry.variants.values() if entry else ())
            if not self.bound.keys() & variant.options.keys() and _possible(self, variant.options)
        ]

    @property
    def ours(self) -> bool:
        return not self.name.startswith("torch.")

    @property
    def options(self) -> list[str]:
        """The options its groups may have."""
        return list(self.make(parameters()).param_groups[0])

    @property
    def engine(self) -> bool:
        """Whether it has the engine's options."""
        return self.ours and registry.engine_class_of(self.cls) is not None

    def make(self, params: Any, named: bool = True, **options: Any) -> Any:
        """An optimizer as its name makes it.

        Args:
            params: parameters by name, or what a constructor takes.
            named: whether the names are handed over.
            **options: its options.
        """
        if isinstance(params, dict):
            params = self.groups(params) if self.hidden_matrices and not named else entries(params, named)
        if self.ours:
            options = {**GIVEN.get(self.name, {}), **options}
            options = registry.resolve_options(self.name, options)
        return self.cls(params, **options)

    def groups(self, params: Params, named: bool = False) -> Any:
        """Groups as the optimizer wants them of parameters without names."""
        if not self.hidden_matrices:
            return [{"params": entries(params, named)}]
        matrices = {name: param for name, param in params.items() if param.ndim == 2}
        rest = {name: param for name, param in params.items() if name not in matrices}
        chosen = ((matrices, True), (rest, False))
        return [{"params": entries(part, named), "use_muon": muon} for part, muon in chosen if part]

    @functools.cached_property
    def lr(self) -> float:
        """A learning rate that suits it: its own, or 0.01 where that is None or meant for trust ratios."""
        lr = self.make(parameters()).param_groups[0]["lr"]
        return 1e-2 if lr is None or "trust_coeff" in self.make(parameters()).defaults else float(lr)

    def backward(self, loss: Tensor) -> None:
        loss.backward(create_graph=self.second_order)

    def advance(
        self,
        optimizer: Any,
        params: Params,
        steps: int = 1,
        loss_of: Callable[[Params], Tensor] | None = None,
        after: Callable[[], Any] = lambda: None,
        around: Callable[[], Any] = nullcontext,
    ) -> None:
        """Take steps as its users do.

        Args:
            optimizer, params: what steps, and what the loss is of.
            steps: how many.
            loss_of: the loss (default: `quartic`, whose gradient is written down for speed where it needs no graph).
            after: called after each backward.
            around: a context for each call of the optimizer's step; the loss is computed outside of autocast.
        """

        told = [inner for inner in unwrap_all(optimizer, RuleOptimizer) if inner.needs_loss]

        @torch.autocast("cpu", enabled=False)
        def closure() -> Tensor | None:
            optimizer.zero_grad()
            loss = None
            if loss_of is not None or self.second_order:
                loss = (loss_of or quartic)(params)
                self.backward(loss)
            else:
                with torch.no_grad():
                    loss = quartic(params) if self.closure or told else None
                    for param in params.values():
                        param.grad = 2.0 * (param - 0.5) + 0.4 * param.abs() ** 2 * param
            after()
            for param in params.values() if self.sparse else ():
                if param.grad is not None:
                    param.grad = param.grad.to_sparse(min(1, param.ndim))
            return loss

        for _ in range(steps):
            if not self.closure:
                loss = closure()
                for inner in told:
                    inner.add_loss(loss)
            with around():
                optimizer.step(*([closure] if self.closure else []))


def entries(params: Params, named: bool) -> list[Any]:
    return list(params.items()) if named else list(params.values())


def parameters(
    dtype: torch.dtype = torch.float32, device: str = "cpu", shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Params:
    """Two parameters of a few entries, a matrix inside of a network and a vector, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    shapes = shapes or {"body.weight": (3, 2), "body.bias": (3,)}
    made = {}
    for name, shape in shapes.items():
        real = torch.randn(shape, generator=generator, dtype=torch.float64)
        value = torch.complex(real, real.flip(0)) if dtype.is_complex else real
        made[name] = nn.Parameter(value.to(device, dtype))
    return made


def quartic(params: Params) -> Tensor:
    """A loss with curvature everywhere, low between 0 and 0.5."""
    terms = [((p - 0.5).abs() ** 2).sum() + 0.1 * (p.abs() ** 4).sum() for p in params.values()]
    return torch.stack(
        [term.float() if term.dtype in (torch.float16, torch.bfloat16) else term for term in terms]
    ).sum()


def _possible(row: Row, options: Mapping[str, Any]) -> bool:
    try:
        row.make(parameters(), **options)
    except ValueError:
        return False
    return True


def _row(name: str) -> Row:
    info = hfoptim.get_optimizer_info(name)
    needs = (info.needs_closure, info.second_order, info.hidden_matrices)
    return Row(name, info.opt_class, *needs, info.defaults, info.sparse_only)


WRAPPED = (
    "ema_lion",
    "grokfast_adamw",
    "lookahead_adamw",
    "magma_adamw",
    "mechanic_adamw",
    "sam_sgd",
    "schedule_free_lion",
)
# Options under which few steps move the weights.
GIVEN = {"mechanic_adamw": {"mechanic_s_init": 0.1}, "sara": {"threshold": 9.0, "lr": 1e-3}}
CONTROLS = ("AdamW", "SGD", "Adagrad", "LBFGS")
ROWS = [_row(name) for name in (*hfoptim.list_optimizers(), *WRAPPED)] + [
    Row(f"torch.{name}", getattr(torch.optim, name), name == "LBFGS") for name in CONTROLS
]


def every_row(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test over all rows. Where the table says that it does not apply it has to fail, with the error named."""
    return _over_rows(test, [[]] * len(ROWS))


def every_kind_of_row(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test of what is the engine's business over all rows; in `make test` over one of each kind, see tiers.py."""
    seen: set[Any] = set()
    marks = []
    for row in ROWS:
        kind = kind_of_name(row.name) if row.ours else row.name
        marks.append([pytest.mark.slow if kind in seen else pytest.mark.kind])
        seen.add(kind)
    return _over_rows(test, marks)


def _over_rows(test: Callable[..., None], marks: list[list[Any]]) -> Callable[..., None]:
    cells = []
    for row, own in zip(ROWS, marks, strict=True):
        exemption = EXEMPTIONS.get((test.__name__, row.name))
        more = [pytest.mark.xfail(raises=exemption.raises, reason=exemption.reason, strict=True)] if exemption else []
        cells.append(pytest.param(row, id=row.name, marks=own + more))
    return pytest.mark.parametrize("row", cells)(test)
