"""`EngineOptimizer`: the one torch.optim.Optimizer that runs every rule of the catalogue."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from hfoptim.engine import backends, bucket_cache, checks, device_numbers, inputs, peer_options, row_sparse, storage
from hfoptim.engine.ambient import leave_undisturbed, undisturbed
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.bucket_step import (
    BucketStep,
    add_sums,
    ensure_state,
    placed,
    probe_scalars,
    row_of,
    totals_of,
)
from hfoptim.engine.checkpoints import loading
from hfoptim.engine.distributed import agreement, dtensor, flattened, sharded
from hfoptim.engine.distributed.owners import Owners, stepped_elsewhere
from hfoptim.engine.distributed.segmented import Segmented
from hfoptim.engine.options import check_options, documentation
from hfoptim.engine.plan import DECOUPLED_PLACES, Decay, Plan, corrected, option_scalars, plan_of, unit, whole
from hfoptim.engine.precision import precise
from hfoptim.engine.rule import Group, Rule, Scope, clone
from hfoptim.engine.run_state import NO_RUN_STATE, RunState, signed
from hfoptim.engine.unwrapping import unmasked, unwrap_all

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from hfoptim.engine.report import Report
    from hfoptim.training.gradient_release import Release

DOUBLE_PRECISION = (torch.float64, torch.complex128)

# A parameter with its gradient, and the index of its group.
_Entry = tuple[int, Tensor, Tensor]


class Place(NamedTuple):
    """Where an optimizer has a parameter: its group, its position there, and its number among all parameters."""

    group: int
    position: int
    ordinal: int


class Survey(NamedTuple):
    """What the step of one parameter takes from all of them.

    Args:
        backends: those to try for each group and type of device.
        places: where each parameter is.
    """

    backends: dict[tuple[int, str], tuple[Backend, ...]]
    places: dict[Tensor, Place]


class EngineOptimizer(Optimizer):
    __doc__ = f"""Runs a rule over many parameters; subclasses give rule, hyper-parameters and place of weight decay.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        defaults: the optimizer's hyper-parameters.
        **options: the engine's options:
{documentation(12)}

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: a hyper-parameter out of range, or no parameters.
    """

    rule: ClassVar[Rule]
    decay: ClassVar[Decay] = Decay.DECOUPLED
    # The flag, where there is one, under which weight decay is decoupled; without it, it enters at `decay`.
    decoupled_by: ClassVar[str | None] = None
    # Entries of a group, beside those of the run state, that change from step to step and that no choice of a rule
    # depends on.
    per_step_options: ClassVar[frozenset[str]] = frozenset({"lr"})
    # Whether its rules know `caution="momentum"`; not where a mask on the momentum is one on the whole update.
    masks_momentum: ClassVar[bool] = False
    # A state that is computed from the gradients' graph before a step.
    curvature: ClassVar[inputs.Curvature | None] = None
    # Whether a step depends on the value of the loss.
    needs_loss: ClassVar[bool] = False
    # Whether it takes no gradients but sparse ones.
    sparse_only: ClassVar[bool] = False
    # Neither saved nor copied.
    _last_step: bucket_cache.LastStep | None = None
    # Hyper-parameters that checkpoints of the peers this class interchanges with do not have.
    absent_from_peers: ClassVar[frozenset[str]] = frozenset()
    # Those in their checkpoints that this class has not: the value at which one changes nothing here, or a function
    # `(optimizer, value, group) -> bool` that says whether it does not.
    peer_flags: ClassVar[Mapping[str, Any]] = {}
    # What their state is called here; None for state that is left out where the rule has none of that name.
    peer_state: ClassVar[Mapping[str, str | None]] = {}
    # What bitsandbytes has by this class's name instead of its equations; its state is refused for that.
    other_in_bitsandbytes: ClassVar[str] = ""
    # State, of a parameter's shape, that is there at times only.
    occasional_state: ClassVar[frozenset[str]] = storage.RESIDUALS
    # Whether a schedule that lowers lr works against this class.
    wants_constant_lr: ClassVar[bool] = False
    # Whether lr multiplies a step size that the class finds by itself, so that it is 1, or a schedule from 1 to 0.
    lr_is_factor: ClassVar[bool] = False
    # Whether lr must be the same in all groups, or 0, which freezes a group.
    one_lr: ClassVar[bool] = False
    # Takes the steps inside of backward, while gradients are released.
    release: Release | None = None
    # The names of parameters, each with the group's list that it is from.
    _names: Mapping[Tensor, tuple[Any, str]] = {}
    # The loss of the step to come, as far as it is known.
    _loss: Tensor | None = None
    # The curvature of the step to come, where it is added up over micro-batches.
    _curvature: dict[Tensor, Tensor] | None = None
    # Notes what rules say about the steps, while somebody asks.
    report: Report | None = None
    # The optimizers around this one, the innermost first.
    around: tuple[Any, ...] = ()
    # The parameters it was given, which others may have replaced since.
    _given: flattened.Given | None = None
    # Whether it is known that plain parameters beside divided ones are the same on all ranks.
    _agreed: bool = False
    # The ranks with the same parameters, among which `distribute_matrices` divides them; None: all. Neither saved nor
    # copied, as what follows.
    process_group: ProcessGroup | None = None
    # Who steps what.
    _owners: Owners | None = None
    # The states of all ranks, while `state_dict` is to have them without asking.
    _whole_state: dict[int, dict[str, Any]] | None = None
    # Steps flattened parameters with their shapes, where that is needed; `_within`: the same, while it does so.
    _segmented: Segmented | None = None
    _within: Segmented | None = None

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.check_group(defaults)
        self.defaults = {**self.run_state.first(defaults), **defaults}
        super().__init__(params, self.defaults)
        if self.lr_is_factor:
            checks.factor(type(self).__name__, max(float(group["lr"]) for group in self.param_groups))

    # -- what a subclass may override ---------------------------------------------------------------------------

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        """The rule of one parameter; the class's rule unless overridden.

        Of `weight_decay`, `momentum` and `betas`, which schedules move, it may depend on whether they are 0 only.
        """
        return self.rule

    def taken_by(self, param: Tensor, group: dict[str, Any]) -> str:
        """Which of its ways the optimizer has of taking a parameter, in words; empty where it has one for all."""
        return ""

    @property
    def goes_by_names(self) -> bool:
        """Whether some of its parameters are stepped in a way that their names decide."""
        return False

    def partner_of(self, param: Tensor, group: Group) -> Tensor:
        """The other parameter that the rule of one is to know of (`Rule.partner`)."""
        raise NotImplementedError

    def decay_for(self, group: dict[str, Any]) -> Decay:
        """Where weight decay enters for a group: as the class and its flag `decoupled_by` say, unless overridden."""
        return Decay.DECOUPLED if self.decoupled_by and group[self.decoupled_by] else self.decay

    def first_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state that the first step makes for a parameter, which may be on the device "meta"; none is kept."""
        return ensure_state(self.plan_for(param, group), param, {}, 0, 0)

    @property
    def run_state(self) -> RunState:
        """Numbers that are carried from step to step; a class that has any sets it to its `RunState`."""
        return NO_RUN_STATE

    def check_ready(self) -> None:
        """Raise if no step can be taken now. Called before a step's closure, and before gradient release moves any."""

    @property
    def calls_closure_twice(self) -> bool:
        """Whether a step takes gradients of its batch at two points, by `before_closure`."""
        return False

    @property
    def two_points(self) -> str:
        """What to call an optimizer whose `calls_closure_twice` is true, with the option that makes it so."""
        return type(self).__name__

    def before_closure(self, closure: Callable[[], Any] | None) -> Callable[[], Any] | None:
        """Evaluate a step's closure somewhere else first, where a step needs that; gradients are not enabled.

        Returns:
            The closure that the step evaluates, if any; it puts weights back where they were, if they were moved.
        """
        return closure

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise if a hyper-parameter of a group is wrong, and put each into it as Python's own number, tuple or text.

        Of a checkpoint, `torch.load(weights_only=True)` reads such values only.
        """
        for name in peer_options.FLAGS:
            # torch puts `differentiable` into the defaults of whatever it unpickles.
            if name in group and (name not in self.defaults or name == "differentiable"):
                checks.unavailable(name, group[name], peer_options.FLAGS[name])
        self.run_state.check(group)
        check_options(group)
        if group["caution"] == "momentum" and not self.masks_momentum:
            raise ValueError(
                f"caution='momentum' is for optimizers whose update is more than a momentum with other lengths; "
                f"{type(self).__name__} takes caution=True"
            )
        self._check_decay(group)

    def _check_decay(self, group: dict[str, Any]) -> None:
        chosen = [name for name in ("cautious_weight_decay", "corrected_weight_decay") if group[name]]
        place = self.decay_for(group) if "weight_decay" in group else Decay.NONE
        if chosen and place not in DECOUPLED_PLACES:
            raise ValueError(
                f"{chosen[0]}=True needs decoupled weight decay; here it enters {place.value}. Leave it out, or choose "
                f"the option or the optimizer with decoupled decay"
            )
        if group["corrected_weight_decay"] and group.get("decouple_lr"):
            raise ValueError("corrected_weight_decay=True and decouple_lr=True exclude each other; give one of them")
        if group["corrected_weight_decay"] and group["lr"] is None:
            raise ValueError("corrected_weight_decay=True multiplies by lr / max_lr, and there is no lr; give one")
        if _needs_peak(group) and group.get("max_lr") == 0:
            raise ValueError("the weight decay divides by the peak learning rate, which is 0 here; give max_lr above 0")

    def _check_units(self, group: dict[str, Any]) -> None:
        units = [name for name in ("gradient_centralization", "adaptive_clip") if group[name]]
        chosen = units + [name for name in ("orthograd", "hyperball") if group[name]]
        if not chosen:
            return
        if flattened.is_flattened([group]):
            if not group["hyperball"] and flattened.is_recorded(group, flattened.FSDP1):
                return  # looked at with the shapes, when these are stepped
            raise ValueError(
                f"{chosen[0]} looks at rows or the whole of parameters, which FullyShardedDataParallel (FSDP1) has "
                f"flattened; take fully_shard (FSDP2), or leave it out"
            )
        for position, param in enumerate(group["params"]):
            rule = self.rule_for(param, group)
            if units:
                unit(rule, param.shape)
            if group["hyperball"] and param.ndim > 1:
                self._check_sphere(rule, param, group, position)

    def _check_sphere(self, rule: Rule, param: Tensor, group: dict[str, Any], position: int) -> None:
        name = type(self).__name__
        if self.lr_is_factor or group["lr"] is None:
            raise ValueError(f"hyperball=True takes the length of a step from lr, and {name} finds it by itself")
        if any(state is clone for state in rule.state.values()):
            raise ValueError(f"hyperball=True keeps the norm of the weights, of which {name} keeps others beside them")
        if group["stochastic_rounding"]:
            raise ValueError("hyperball=True and stochastic_rounding=True exclude each other: the norm would grow")
        if not (dtensor.is_dtensor(param) or param.is_meta or not param.numel() or param.detach().any()):
            raise ValueError(
                f"{checks.parameter_name(group, len(self.param_groups) - 1, position)} is zero, and hyperball=True "
                f"would keep it so; give it values, or leave the option out for its group"
            )

    def check_added(self, group: dict[str, Any]) -> None:
        """Raise if a group that is there now, with its parameters, cannot be stepped; it is then taken out again."""

    def name_of(self, param: Tensor, group: Group) -> str | None:
        """The name that a parameter of a group was given or loaded with; None if it has none."""
        names = group.get("param_names")
        if names is None:
            return None
        if self._names.get(param, (None,))[0] is not names:
            self._names = {
                member: (each["param_names"], name)
                for each in (*self.param_groups, group)
                if "param_names" in each and len(each["params"]) == len(each["param_names"])  # else it is flattened
                for member, name in zip(each["params"], each["param_names"], strict=True)
            }
        return self._names.get(param, (None, None))[1]

    def own_default(self, name: str) -> Any:
        """The default of a hyper-parameter in the class's signature; what it starts from, where it is no argument."""
        parameter = inspect.signature(type(self)).parameters.get(name)
        return self.defaults[name] if parameter is None else parameter.default

    @classmethod
    def defaults_by_name(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults that follow from the options given, where the optimizer is chosen by name."""
        return {}

    # -- torch.optim.Optimizer ----------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; hyper-parameters it does not name are the optimizer's defaults."""
        given = checks.group_dict(param_group)
        group = {**self.defaults, **given}
        group.update({name: value for name, value in self._own_first(group).items() if name not in given})
        self.check_group(group)
        if self.param_groups:
            self.run_state.join(group, self.param_groups[0], type(self).__name__)
        param_group.update(group)  # torch, too, completes the caller's
        super().add_param_group(param_group)
        if "differentiable" not in self.param_groups[0]:  # torch adds it to the defaults once there are groups
            param_group.pop("differentiable", None)
        known = self._parameters_given()
        known.add(param_group)
        try:
            if _needs_peak(param_group) and param_group.get("max_lr") is None:
                # The lr that the group starts with, as a number of its own: a schedule may change a tensor in place.
                param_group["max_lr"] = checks.number("lr", param_group["lr"])
                self.check_group(param_group)
            flattened.refuse(self, [param_group], known, made=True)
            self.check_added(param_group)
            self._check_units(param_group)
        except Exception:
            self.param_groups.pop()
            known.remove_last()
            raise

    def _own_first(self, group: Group) -> dict[str, Any]:
        """The run state's first values for a group, as its own options give them; without what was given for all."""
        of_all = self.run_state.first(self.defaults)
        return {n: value for n, value in self.run_state.first(group).items() if self.defaults[n] == of_all[n]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                if name != "differentiable":  # torch's, in the defaults of every optimizer
                    group.setdefault(name, value)
        self._parameters_given().replace(self.param_groups)

    def switch_weights(self, switch: Callable[[], None]) -> None:
        """Put other weights into the parameters, as those for evaluation; where they are flat, into the model, too.

        Args:
            switch: writes them.
        """
        flattened.switch(self, switch)

    def _parameters_given(self) -> flattened.Given:
        """The parameters that it was given; of a copy, those that it has when it is made."""
        if self._given is None:
            self._given = flattened.Given(self.param_groups)
        return self._given

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs, as `torch.load(weights_only=True)` reads it.

        Hyper-parameters are Python's own numbers and tuples, also where somebody wrote others into the groups. With
        `distribute_matrices` it gathers what other ranks keep, so that every rank has to call it.
        """
        if self._segmented is not None:
            groups = self._parameters_given().groups
            return loading.portable(self._segmented.state_dict(self, groups, super().state_dict))
        found = super().state_dict()
        if self._whole_state is not None:
            found = {**found, "state": {**found["state"], **self._whole_state}}
        elif (owners := self.owners()) is not None and any(self.state.values()):
            keys = [key for group in found["param_groups"] for key in group["params"]]
            indices = dict(zip((p for group in self.param_groups for p in group["params"]), keys, strict=True))
            found = {**found, "state": owners.whole_state(found["state"], indices)}
        return loading.portable(found)

    @contextmanager
    def gathered_state(self) -> Iterator[None]:
        """Have one rank call `state_dict` without the others, under `distribute_matrices`: they gather it here.

        Every rank enters it:

            with optimizer.gathered_state():
                if rank == 0:
                    torch.save(optimizer.state_dict(), path)
        """
        self._whole_state = self.state_dict()["state"] if self.owners() is not None else None
        try:
            yield
        finally:
            self._whole_state = None

    @leave_undisturbed
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict, each state tensor in the form that its group asks for (`state_dtype`).

        Args:
            state_dict: of this optimizer, or of the peer (torch.optim, transformers) whose state names it shares.

        Raises:
            ValueError: it is another optimizer's, or its groups, parameters or shapes are not these; nothing changed.
        """
        found = flattened.of_state(self, state_dict)
        if found is None:
            loading.load(unmasked(self), state_dict)
        else:
            groups = self._parameters_given().groups
            found.load(self, groups, state_dict, lambda plain: loading.load(unmasked(self), plain))

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        """Turn a peer's saved state of one parameter into ours, where `peer_state` does not suffice."""
        return state

    @property
    def is_second_order(self) -> bool:
        """Whether gradients need a graph: `loss.backward(create_graph=True)`. timm's training loops ask for it."""
        return self.curvature is not None

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler lets the optimizer know that it is there, which is then refused."""
        return self.is_second_order or self.needs_loss or self.release is not None

    def add_loss(self, loss: Tensor | float) -> None:
        """Tell the loss of the step to come, for optimizers whose step depends on it; the others make no use of it.

        Where gradients are accumulated: call it once per micro-batch with the loss that `backward` was called on, so
        that the sum is the loss whose gradient the step is taken with. Nothing waits for the device.

        Args:
            loss: not multiplied by a GradScaler; under data parallelism that of this rank, as the step takes the mean
                over all ranks.

        Raises:
            TypeError: no number.
            ValueError: a tensor of more than one.
        """
        if self.needs_loss:
            value = inputs.as_loss(loss)
            self._loss = value if self._loss is None else precise(self._loss) + precise(value.to(self._loss.device))

    @property
    def needs_graph(self) -> bool:
        """Whether gradients of the step to come need a graph: where a curvature is estimated, at steps at which it is.

        loss.backward(create_graph=optimizer.needs_graph)
        """
        due = self.curvature.is_due if self.curvature is not None else lambda *_: False
        return any(due(p, group, self.state) for group in self.param_groups for p in group["params"] if p.requires_grad)

    @torch.no_grad()
    def add_curvature(self) -> None:
        """Take the curvature from the gradients there are, and free their graph. Nothing for those that need no graph.

        Where gradients are accumulated: call it after each micro-batch's `backward(create_graph=True)`, so that one
        graph is there at a time. Curvatures are added up as gradients are; the step takes their mean over all ranks.

        Raises:
            TypeError: a sharded or complex parameter.
            RuntimeError: no gradient has a graph.
        """
        if not self.needs_graph:
            return
        assert self.curvature is not None
        entries = self._entries()
        self._curvature = {} if self._curvature is None else self._curvature
        self.curvature.add(type(self).__name__, entries, self.param_groups, self.state, self._curvature)
        for _, param, grad in entries:
            param.grad = grad.detach()

    def drop_step(self) -> None:
        """Forget what was told of a step that is not taken after all: losses, curvature."""
        self._loss = self._curvature = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None) -> Any:
        """Take one optimization step; under gradient release, end the one that backward has taken.

        Args:
            closure: re-evaluates the model and returns the loss; called once, with gradients enabled.
            loss: as `add_loss` takes it. For optimizers whose step depends on it (`needs_loss`): they take the
                closure's where none was told.

        Returns:
            The closure's loss, or None.

        Raises:
            TypeError: a gradient is sparse, and the optimizer or an option does not take it; no parameter has changed.
            RuntimeError: the step depends on a loss that was not told; or, under gradient release, a gradient is there
                that was not released.
        """
        self.check_ready()
        if loss is not None:
            self.add_loss(loss)
        closure = self.before_closure(closure)
        found = None
        if closure is not None:
            with torch.enable_grad():
                found = closure()
            take_loss(self, found)
        with undisturbed():
            # What is flattened, and needs its shapes, leaves no last step.
            if self._last_step is None and flattened.stepped(self):
                return found
            entries = self._entries()
            if self._is_only_for_state(entries):
                self._collect(entries)
                self.drop_step()  # what it was told is no part of the next step
            elif self.release is not None:
                self.release.end(self, entries)
            elif entries and any(group["gradient_release"] for group in self.param_groups):
                raise RuntimeError(
                    f"{type(self).__name__} was made with gradient_release=True, and no model was prepared for it; "
                    f"call prepare_for_gradient_release(model, optimizer) before the first backward pass"
                )
            else:
                self._step(entries)
        return found

    @_disable_dynamo  # the engine has its own kernels; traced, its bookkeeping compiles anew as counts change
    def _step(self, entries: list[_Entry]) -> None:
        """Step the parameters given."""
        if self.one_lr:
            entries = self._of_one_lr(entries)
        name = type(self).__name__
        if self.sparse_only:
            row_sparse.refuse_dense(name, entries, self.param_groups)
        inputs.refuse_scaler(self, name)
        inputs.refuse_capture([param for _, param, _ in entries[:1]], name)
        loss = self._mean_loss() if self.needs_loss else None
        if self.curvature is not None:
            self._refuse_flattened()
            added, self._curvature = self._curvature, None
            self.curvature.prepare(name, entries, self.param_groups, self.state, added)
        owners = self.owners()
        # Taken away for as long as the step runs: one that fails leaves nothing to go on from.
        last, self._last_step = self._last_step, None
        work = last.again(entries, self.state, self._options_now()) if last is not None else None
        if work is None:
            self._refuse_flattened()
            last, work = None, self._collect(entries)
        here = [item for item in work if not item.elsewhere]
        inputs.meet_partners(here, self.state, self.partner_of)
        self._advance(here, loss)
        self._run(work, owners)
        if last is None and work and bucket_cache.can_be_kept(work):
            last = bucket_cache.LastStep(entries, work, self.state, self._options_now())
        if last is not None:
            last.drop_gradients()
        self._last_step = last

    def _refuse_flattened(self) -> None:
        """Raise if others have put something else into the groups, which cannot be stepped as it is."""
        if self._within is None:
            flattened.refuse(self, self.param_groups, self._parameters_given())
            agreement.refuse_replaced(type(self).__name__, self.param_groups)

    def _advance(self, work: list[BucketStep], loss: Tensor | None) -> None:
        """Sum what is summed over all tensors, advance the run state, and give each bucket its scalars."""
        over = [item.groups for item in work if item.groups and item.bucket.plan.rule.probe is not None]
        if over and not self._agreed:
            agreement.refuse_differing(type(self).__name__, self.param_groups, over)
            self._agreed = True
        of_step = work, self.param_groups, self.run_state.init
        within = self._within
        # Ranks exchange tensors.
        first, arithmetic = (None if within else device_numbers.arithmetic_of(work) for _ in range(2))
        probed = device_numbers.computed(lambda _: probe_scalars(work), *of_step, first)
        totals = totals_of(work, probed, arithmetic, self.run_state.naming(self.param_groups))
        if within is not None:
            totals = within.summed(totals)

        def scalars(of: Callable[[Any], Any] | None) -> list[dict[str, Any]]:
            more = self._begin(totals, loss, of)
            known = totals if of is None else {name: of(total) for name, total in totals.items()}
            return [self._scalars(item, known, more.get(id(item.group), {})) for item in work]

        for item, found in zip(work, device_numbers.computed(scalars, *of_step, arithmetic, totals), strict=True):
            item.bucket.scalars = found

    def _begin(
        self, totals: dict[str, Tensor], loss: Tensor | None = None, of: Callable[[Any], Any] | None = None
    ) -> dict[int, dict[str, Any]]:
        """Advance the run state.

        Args:
            totals: sums over all tensors.
            loss: of the step.
            of: makes symbols of tensors, where this is traced.

        Returns:
            What the `per_step` of each group is handed beside the totals, by the group's id.
        """
        if loss is not None:
            loss = precise(loss) if of is None else of(loss)
        found = self.run_state.step(self.param_groups, totals, loss, *(() if of is None else (of,)))
        if loss is None:
            return found
        groups = self.param_groups
        return {id(group): {"loss": signed(loss, group), **found.get(id(group), {})} for group in groups}

    def _of_one_lr(self, entries: list[_Entry]) -> list[_Entry]:
        """The entries of groups that are not frozen."""
        rates = {float(group["lr"]) for group in self.param_groups}
        if len(rates - {0.0}) > 1:
            raise ValueError(
                f"groups have the learning rates {', '.join(f'{rate:g}' for rate in sorted(rates))}: "
                f"{type(self).__name__} makes one estimate for all groups, so lr must be the same, or 0 for a frozen "
                f"group"
            )
        return [entry for entry in entries if float(self.param_groups[entry[0]]["lr"]) > 0.0]

    def _mean_loss(self) -> Tensor:
        """The loss of this step over all ranks, on the device of the first parameter."""
        loss, self._loss = self._loss, None
        if loss is None:
            raise RuntimeError(
                f"the step of {type(self).__name__} depends on the loss, which it was not told: call "
                f"step(loss=loss.detach()), step(closure), or add_loss(loss) before step()"
            )
        return inputs.mean_over_ranks(loss.to(self.param_groups[0]["params"][0].device))

    @property
    def changing_options(self) -> frozenset[str]:
        """Entries of a group that change from step to step."""
        return self.per_step_options | self.run_state.init.keys()

    def _options_now(self) -> list[list[Any]]:
        return bucket_cache.options_of(self.param_groups, self.changing_options)

    def _run(self, work: list[BucketStep], owners: Owners | None = None) -> None:
        if owners is not None:
            owners.agree()
            divided = [item for item in work if item.params[0] in owners.round_of]
            for item in divided:
                item.draw(self.state)
            owners.step(partial(_step_round, divided, owners.round_of))
        rest = [item for item in work if owners is None or item.params[0] not in owners.owner]
        for item in rest:
            item.draw(self.state)
            if self.report is not None:
                self.report.take(item)
        here = [item for item in rest if not item.whole]
        sharded.run([(item.bucket, item.backend.step) for item in rest if item.whole], partial(self._step_here, here))
        for item in work:
            item.count()

    def _step_here(self, work: list[BucketStep]) -> None:
        """Step buckets whose tensors this rank has."""
        for item in work:
            if item.by_sums:
                assert self._within is not None
                self._within.step_by_sums(item.bucket, item.params)
                continue
            with row_sparse.gathered(item.bucket) if item.sparse else item.occupied().shaped() as bucket:
                if bucket.rows:
                    item.backend.step(bucket)

    def owners(self) -> Owners | None:
        """Who steps which matrix under `distribute_matrices`; None where every rank steps all of its parameters.

        Raises:
            RuntimeError: a matrix is to be stepped here from now on whose state another rank has.
        """
        owners, last = self.owners_now(), self._owners
        if owners is not last:
            if last is not None:
                self._check_kept(last.elsewhere - (owners.elsewhere if owners is not None else set()))
            self.set_owners(owners)
        return owners if owners is not None and owners.owner and owners.ranks > 1 else None

    def owners_now(self) -> Owners | None:
        """Who steps which matrix from now on, whoever has the state; the same object where nothing has changed."""
        if not any(group["distribute_matrices"] for group in self.param_groups):
            return None
        divided = [[p for p in g["params"] if g["distribute_matrices"]] for g in self.param_groups]
        if self._owners is not None and self._owners.are_for(divided, self.process_group):
            return self._owners
        taken = [[p for p in ps if self._is_divided(p, g)] for ps, g in zip(divided, self.param_groups, strict=True)]
        return Owners(divided, taken, self.process_group)

    def set_owners(self, owners: Owners | None) -> None:
        """Go on with these, whose state is there."""
        self._owners, self._last_step = owners, None

    def _is_divided(self, param: Tensor, group: dict[str, Any]) -> bool:
        return not dtensor.is_dtensor(param) and self.rule_for(param, group).scope is Scope.MATRIX

    def _check_kept(self, params: set[Tensor]) -> None:
        for index, group in enumerate(self.param_groups):
            for position, param in enumerate(group["params"]):
                if param in params and self.state.get(param, {}).get("step"):
                    raise RuntimeError(
                        f"{self._name_of(index, position)} was stepped by another rank (distribute_matrices=True), "
                        f"which has its state; take state_dict() on every rank before the option, the ranks or the "
                        f"order of the parameters change, and load it afterwards"
                    )

    # -- one step -----------------------------------------------------------------------------------------------

    def _entries(self) -> list[_Entry]:
        """(group's index, parameter, gradient) of every parameter that has a gradient."""
        entries = []
        for index, group in enumerate(self.param_groups):
            for position, param in enumerate(group["params"]):
                grad = param.grad
                if grad is not None:
                    if grad.layout is not torch.strided:  # asked before: a call for each is time
                        self._check_sparse(param, grad, index, position)
                    entries.append((index, param, grad))
        return entries

    def _check_sparse(self, param: Tensor, grad: Tensor, index: int, position: int) -> None:
        """Raise a TypeError if a sparse gradient is not taken."""
        group = self.param_groups[index]
        called = self._name_of(index, position)
        row_sparse.check(type(self).__name__, called, self._plan(param, group, ()), param, grad, group)
        self._last_step = None  # what is kept is of dense gradients

    def _is_only_for_state(self, entries: list[_Entry]) -> bool:
        """Whether a first step is meant to create state and nothing else: every lr is 0 and every gradient zero.

        So does torch.distributed.checkpoint before it reads or loads an optimizer's state. Such a step must not count,
        nor decay parameters in optimizers that choose their step sizes themselves.
        """
        if any(self.state.values()) or not entries:
            return False
        if any(group["lr"] is None or float(group["lr"]) != 0.0 for group in self.param_groups):
            return False
        sums: dict[dtensor.Groups, dict[str, Tensor]] = {}
        for _, param, grad in entries:
            size = dtensor.local(dtensor.aligned(grad.detach(), param)).abs().sum(dtype=torch.float64)
            add_sums(sums.setdefault(dtensor.groups_of(param), {}), {"grad": size})
        return bool(dtensor.sum_over_ranks(sums)["grad"] == 0.0)

    def _survey(self) -> Survey:
        sizes: dict[str, int] = {}
        places: dict[Tensor, Place] = {}
        for index, group in enumerate(self.param_groups):
            for position, param in enumerate(group["params"]):
                places[param] = Place(index, position, len(places))
                sizes[param.device.type] = sizes.get(param.device.type, 0) + backends.size_of(param)
        choice = {
            (index, device): backends.choose(group, device, size)
            for index, group in enumerate(self.param_groups)
            for device, size in sizes.items()
        }
        return Survey(choice, places)

    def _collect(self, entries: list[_Entry], survey: Survey | None = None) -> list[BucketStep]:
        """Sort parameters into buckets, creating state where there is none."""
        survey = survey or self._survey()
        owners = self.owners()
        elsewhere = owners.elsewhere if owners is not None else ()
        planned = []
        wholes: Mapping[Tensor, Tensor] = {} if self._within is None else self._within.wholes
        for index, param, grad in entries:
            whole_param = wholes.get(param, param)
            if param.is_inference():
                name = self._name_of(index, survey.places[whole_param].position)
                raise RuntimeError(
                    f"{name} was made in torch.inference_mode(), outside of which nothing can be written to it; make "
                    f"or load the model under torch.no_grad() instead"
                )
            group, sparse = self.param_groups[index], grad.layout is not torch.strided
            tried = backends.eager(group) if sparse else survey.backends[index, param.device.type]
            _, position, ordinal = survey.places[whole_param]
            if param in elsewhere:
                plan = plan_of(stepped_elsewhere, Decay.NONE, storage.exact_dtype(param.dtype))
                backend: Backend = backends.LOOP
                for name in self.state[param].keys() - {"step"}:
                    del self.state[param][name]
            else:
                plan = self._plan(whole_param, group, tried)
                backend = backends.first_of(tried, plan, param.device)
            state = ensure_state(plan, param, self.state[param], ordinal, position)
            planned.append((index, backend, plan, param, grad, state))
        counts = torch.stack([entry[-1]["step"] for entry in planned]).tolist() if planned else []
        work: dict[tuple[Any, ...], BucketStep] = {}
        for (index, backend, plan, param, grad, state), count in zip(planned, counts, strict=True):
            # State loaded from elsewhere may be kept in another dtype for some of the parameters.
            dtypes = tuple(state[name].dtype for name in plan.rule.state)
            row = row_of(plan, param, dtensor.aligned(grad, param), state)
            whole = dtensor.is_dtensor(param) and sharded.takes(plan, row)
            layout = dtensor.layout(param)
            sparse = grad.layout is not torch.strided
            by_sums = self._within is not None and self._within.goes_by_sums(param)
            key = (index, plan, param.dtype, grad.dtype, dtypes, param.device, count, layout, whole, sparse, by_sums)
            if key not in work:
                group, groups = self.param_groups[index], dtensor.groups_of(param)
                bucket = Bucket(plan)
                work[key] = BucketStep(group, int(count) + 1, backend, bucket, groups, whole, sparse, by_sums)
            work[key].add(param, row, state["step"], survey.places[wholes.get(param, param)].ordinal)
        return list(work.values())

    def plan_for(self, param: Tensor, group: dict[str, Any]) -> Plan:
        """The plan of a step of one parameter, which may be on the device "meta", by the eager backends."""
        return self._plan(param, group, backends.eager(group))

    def _plan(self, param: Tensor, group: dict[str, Any], tried: tuple[Backend, ...]) -> Plan:
        # A kernel for zero decay would be a second compilation; a multiplication by zero in a fused one costs nothing.
        rule = self.rule_for(param, group)
        # The first ones tried are those for whole matrices.
        compiled = any(backend.compiles for backend in (tried[:1] if rule.scope is Scope.MATRIX else tried))
        place = self.decay_for(group) if "weight_decay" in group else Decay.NONE
        # A rule that decays by itself reads the number, whatever it is.
        decays = compiled or place is Decay.INSIDE or (place is not Decay.NONE and group["weight_decay"] != 0.0)
        clips = group["adaptive_clip"] is not None
        units = unit(rule, param.shape) if clips or group["gradient_centralization"] else ()
        sphere = group["hyperball"] and param.ndim > 1
        decays = decays and not (sphere and place in DECOUPLED_PLACES)
        return plan_of(
            rule,
            place if decays else Decay.NONE,
            torch.float64 if param.dtype in DOUBLE_PRECISION else torch.float32,
            group["maximize"],
            group["caution"] is True,
            storage.rounding_of(param.dtype, group, rule.exact_weights),
            storage.storages(rule, param, group),
            group["cautious_weight_decay"],
            units if group["gradient_centralization"] else (),
            units if clips else None,
            whole(rule, param.shape) if group["orthograd"] else None,
            whole(rule, param.shape) if sphere else None,
        )

    def _scalars(self, item: BucketStep, totals: dict[str, Tensor], more: dict[str, Any]) -> dict[str, Any]:
        rule = item.bucket.plan.rule
        scalars = option_scalars(item.bucket.plan, item.group)
        scalars |= rule.per_step(item.t, item.group, **{**(totals if rule.probe else {}), **more})
        if item.group["corrected_weight_decay"]:
            scalars = corrected(item.bucket.plan, item.group, scalars)
        if "lr" not in scalars:
            scalars["lr"] = float(item.group["lr"])
        return placed(scalars, item.bucket)

    def _name_of(self, index: int, position: int) -> str:
        return checks.parameter_name(self.param_groups[index], index, position)


def _step_round(work: list[BucketStep], round_of: Mapping[Tensor, int], number: int) -> None:
    """Step what of the buckets is of one round."""
    for item in work:
        part = item.in_round(number, round_of)
        if part is not None:
            with part.shaped() as bucket:
                if bucket.rows:
                    item.backend.step(bucket)


def _needs_peak(group: Group) -> bool:
    """Whether a group's weight decay divides by the peak of its learning rate."""
    return bool(group["corrected_weight_decay"] or group.get("decouple_lr"))


def take_loss(optimizer: Any, of_closure: Any) -> None:
    """The loss that a closure has returned is that of the step, for each optimizer inside that was not told it."""
    for inner in unwrap_all(optimizer, EngineOptimizer) if of_closure is not None else ():
        if inner._loss is None:
            inner.add_loss(of_closure)
