"""`RuleOptimizer`: the one torch.optim.Optimizer that runs every rule of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from hfoptim.engine import checkpoint, checks, runners
from hfoptim.engine.apply import Decay, Plan, decay_scalars, entering, plan_of
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.rule import Rule, Scope

LOW_PRECISION = (torch.float16, torch.bfloat16)
DOUBLE_PRECISION = (torch.float64, torch.complex128)


# A parameter with its gradient, and the index of its group.
_Entry = tuple[int, Tensor, Tensor]


class EngineOptions(TypedDict, total=False):
    """Options every optimizer takes, in its constructor and per parameter group."""

    maximize: bool
    foreach: bool | None
    fused: bool | None
    caution: bool
    kahan_sum: bool | None


ENGINE_DEFAULTS: dict[str, Any] = {
    "maximize": False,
    "foreach": None,
    "fused": None,
    "caution": False,
    "kahan_sum": None,
}


class RuleOptimizer(Optimizer):
    """Runs a rule over many parameters. Subclasses give the rule, its hyper-parameters and where weight decay enters.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        defaults: the optimizer's hyper-parameters.
        **options: the engine's options:
            maximize (default False): ascend instead of descend.
            foreach (None): True for the multi-tensor runner, False for one tensor at a time.
            fused (None): True for one compiled kernel per tensor. With both None the engine takes the compiled runner
                for large models where a compiler is at hand, else the multi-tensor one.
            caution (False): drop the entries of the update that point against the gradient, and scale the others up
                (Cautious Optimizers, arXiv 2411.16085).
            kahan_sum (None): keep what rounding takes from float16 and bfloat16 parameters and add it at the next
                step. None: for such parameters, yes.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: a hyper-parameter out of range, or no parameters.
    """

    rule: ClassVar[Rule]
    decay: ClassVar[Decay] = Decay.DECOUPLED
    # Whether lr=None means something to this class.
    lr_optional: ClassVar[bool] = False
    # Hyper-parameters, of those that an optimizer has, that are one number >= 0.
    numbers: ClassVar[tuple[str, ...]] = ("eps", "weight_decay", "momentum")
    # Hyper-parameters that checkpoints of the peers this class interchanges with do not have.
    absent_from_peers: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, params: Any, defaults: dict[str, Any], **options: Any) -> None:
        checks.known_options(type(self).__name__, options, [*defaults, *ENGINE_DEFAULTS])
        super().__init__(params, {**defaults, **ENGINE_DEFAULTS, **options})

    # -- what a subclass may override ---------------------------------------------------------------------------

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        """The rule of one parameter; the class's rule unless overridden."""
        return self.rule

    def decay_for(self, group: dict[str, Any]) -> Decay:
        """Where weight decay enters for a group; the class's placement unless overridden."""
        return self.decay

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise if a hyper-parameter of a group is wrong. Subclasses add what only they have."""
        if group["lr"] is not None or not self.lr_optional:
            checks.number("lr", group["lr"])
        for name in self.numbers:
            if name in self.defaults:
                checks.number(name, group[name])
        if "betas" in self.defaults:
            checks.betas("betas", group["betas"], 2)
        for name in ("maximize", "caution"):
            checks.flag(name, group[name])
        for name in ("foreach", "fused", "kahan_sum"):
            checks.flag(name, group[name], optional=True)
        if group["foreach"] and group["fused"]:
            raise ValueError("foreach=True and fused=True exclude each other; give one of them")

    @staticmethod
    def engine_option_names() -> frozenset[str]:
        """The options every optimizer takes."""
        return frozenset(ENGINE_DEFAULTS)

    @classmethod
    def defaults_by_name(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults that follow from the options given, where the optimizer is chosen by name."""
        return {}

    # -- torch.optim.Optimizer ----------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; hyper-parameters it does not name are the optimizer's defaults."""
        self.check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                if name != "differentiable":  # torch's, in the defaults of every optimizer
                    group.setdefault(name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict, each state tensor in the dtype it was saved in.

        Args:
            state_dict: of this optimizer, or of the peer (torch.optim, transformers) whose state names it shares.

        Raises:
            ValueError: it is another optimizer's, or its groups, parameters or shapes are not these; nothing changed.
        """
        checkpoint.load(self, state_dict)

    def ignores_peer_flag(self, name: str, value: Any, group: dict[str, Any]) -> bool:
        """Whether a hyper-parameter of a peer's checkpoint that this class has not changes nothing at that value.

        Args:
            name, value: the peer's hyper-parameter.
            group: the group as it will be, with the peer's entries.
        """
        return False

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        """Turn a peer's saved state of one parameter into ours. Subclasses whose peer keeps no `step` override it."""
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one optimization step.

        Args:
            closure: re-evaluates the model and returns the loss; called once, with gradients enabled.

        Returns:
            The closure's loss, or None.

        Raises:
            TypeError: a gradient is sparse; no parameter has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step(self._entries())
        return loss

    def before_buckets(self, totals: Mapping[str, Tensor]) -> None:
        """Called once per step, before any parameter moves; overridden where groups carry numbers from step to step.

        Args:
            totals: the sums of the rules' probes, over all parameters and ranks.
        """

    def _step(self, entries: list[_Entry]) -> None:
        """Step the parameters given."""
        work = self._collect(entries)
        totals = _totals(work)
        self.before_buckets(totals)
        for item in work:
            item.bucket.scalars = self._scalars(item, totals)
            with item.bucket.shaped() as bucket:
                item.run(bucket)
        if work:
            torch._foreach_add_([step for item in work for step in item.steps], 1.0)

    # -- one step -----------------------------------------------------------------------------------------------

    def _entries(self) -> list[_Entry]:
        """(group's index, parameter, gradient) of every parameter that has a gradient."""
        entries = []
        for index, group in enumerate(self.param_groups):
            for position, param in enumerate(group["params"]):
                grad = param.grad
                if grad is None:
                    continue
                if grad.layout is not torch.strided:
                    raise TypeError(
                        f"{self._name_of(index, position)} has a sparse gradient ({grad.layout}), which "
                        f"{type(self).__name__} does not take; use a dense one (nn.Embedding(..., sparse=False))"
                    )
                entries.append((index, param, grad))
        return entries

    def _collect(self, entries: list[_Entry]) -> list[_Work]:
        """Sort parameters into buckets, creating state where there is none."""
        numel: dict[str, int] = {}
        for group in self.param_groups:
            for param in group["params"]:
                numel[param.device.type] = numel.get(param.device.type, 0) + param.numel()
        choice = {
            (index, device): runners.choose(group, device, total)
            for index, group in enumerate(self.param_groups)
            for device, total in numel.items()
        }
        planned = []
        for index, param, grad in entries:
            run = choice[index, param.device.type]
            plan = self._plan(param, self.param_groups[index], run)
            planned.append((index, run, plan, param, grad, _ensure_state(plan, param, self.state[param])))
        counts = torch.stack([entry[-1]["step"] for entry in planned]).tolist() if planned else []
        work: dict[tuple[Any, ...], _Work] = {}
        for (index, run, plan, param, grad, state), count in zip(planned, counts, strict=True):
            # State loaded from elsewhere may be kept in another dtype for some of the parameters.
            dtypes = tuple(state[name].dtype for name in plan.rule.state)
            key = (index, plan, param.dtype, grad.dtype, dtypes, param.device, count)
            if key not in work:
                work[key] = _Work(self.param_groups[index], int(count) + 1, run, Bucket(plan))
            work[key].add(param, grad, state)
        return list(work.values())

    def _plan(self, param: Tensor, group: dict[str, Any], run: runners.Runner) -> Plan:
        # A kernel for zero decay would be a second compilation; a multiplication by zero in a fused one costs nothing.
        decays = run is runners.compiled.run or group.get("weight_decay", 0.0) != 0.0
        return plan_of(
            self.rule_for(param, group),
            self.decay_for(group) if decays else Decay.NONE,
            torch.float64 if param.dtype in DOUBLE_PRECISION else torch.float32,
            group["maximize"],
            group["caution"],
            group["kahan_sum"] is not False and param.dtype in LOW_PRECISION,
        )

    def _scalars(self, item: _Work, totals: dict[str, Tensor]) -> dict[str, Any]:
        rule = item.bucket.plan.rule
        scalars = decay_scalars(item.bucket.plan, item.group)
        scalars |= rule.per_step(item.t, item.group, **totals) if rule.probe else rule.per_step(item.t, item.group)
        if "lr" not in scalars:
            scalars["lr"] = float(item.group["lr"])
        return scalars

    def _name_of(self, index: int, position: int) -> str:
        names = self.param_groups[index].get("param_names")
        return f"parameter {names[position]!r}" if names else f"parameter {position} of group {index}"


def unwrap(optimizer: Any, wanted: type | None = None) -> Any:
    """The optimizer inside wrappers, such as Accelerate's, that hold the next one in `.optimizer`.

    Args:
        optimizer: an optimizer, wrapped or not.
        wanted: the class to look for; None for the innermost.

    Returns:
        The first of that class, or None where there is none.
    """
    while wanted is None or not isinstance(optimizer, wanted):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            return optimizer if wanted is None else None
        optimizer = inner
    return optimizer


@dataclass
class _Work:
    """A bucket with what it takes to step it: its group, the step's number, its runner and its step counters."""

    group: dict[str, Any]
    t: int
    run: runners.Runner
    bucket: Bucket
    steps: list[Tensor] = field(default_factory=list)

    def add(self, param: Tensor, grad: Tensor, state: dict[str, Any]) -> None:
        # Detached: a view of a parameter would require a gradient, which a kernel is not compiled for.
        row = [param.detach(), grad.detach(), *(state[name] for name in self.bucket.plan.rule.state)]
        if param.is_complex():
            row = [torch.view_as_real(t) if t.is_complex() else t for t in row]
        if self.bucket.plan.kahan:
            row.append(state["kahan_comp"])
        self.bucket.rows.append(row)
        self.steps.append(state["step"])


def _ensure_state(plan: Plan, param: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    """Create what a parameter's state lacks: at its first step, or after an option that needs more state changed."""
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32)
    for name, init in plan.rule.state.items():
        if name not in state:
            if param.is_complex() and plan.scope is not Scope.ELEMENT:
                raise TypeError(f"{plan.rule.name} works on whole tensors and does not take complex parameters")
            dtype = param.dtype if param.is_complex() else plan.dtype
            state[name] = init(param, dtype)
    if plan.kahan and "kahan_comp" not in state:
        state["kahan_comp"] = torch.zeros_like(param, memory_format=torch.preserve_format)
    return state


def _totals(work: list[_Work]) -> dict[str, Tensor]:
    """The rules' probes, summed over all tensors, on the device of the first of them."""
    totals: dict[str, Tensor] = {}
    for item in work:
        plan = item.bucket.plan
        probe = plan.rule.probe
        if probe is None:
            continue
        scalars = {**decay_scalars(plan, item.group), **probe.per_step(item.t, item.group)}
        with Bucket(plan, item.bucket.rows, scalars).shaped() as bucket:
            h = bucket.hyper()
            for param, grad, *state in bucket.rows:
                weight, grad = entering(plan, h, grad, param)
                state = [s.to(plan.dtype) for s in state[: len(plan.rule.state)]]
                for name, value in probe.fn(grad, weight, *state, h).items():
                    totals[name] = totals[name] + value.to(totals[name].device) if name in totals else value
    return totals
