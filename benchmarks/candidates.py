"""Who is measured: every optimizer of the registry, and the peers' optimizers of the same name.

A peer's class counts as the same optimizer if it has the name of our class or of the registry's entry, in any case, and
takes the arguments that the entry stands for. So what is added to the registry finds its peers by itself; `EXTRA` has
those that go by other names or need other arguments.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from measure import Parameters
from torch.optim import Optimizer

import hfoptim
from hfoptim.engine import RuleOptimizer, Scope
from hfoptim.param_groups.selection import why_not_hidden
from hfoptim.registry.lookup import option_names, resolve_options

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from peers import BARE_FOLDER, installed, load, submodule

BASE = "torch AdamW fused"
OURS = "hfoptim"
WEIGHT_DECAY = 0.1

# How state and low-precision parameters are kept, by a short name. "full" is the default: state in float32, and with
# Kahan's term where parameters are bfloat16. "bare" is what most peers do with those: bfloat16 state, no compensation.
FORMS: dict[str, dict[str, Any]] = {
    "full": {},
    "bare": {"state_dtype": "bfloat16", "state_rounding": "nearest", "kahan_sum": False},
    "bfloat16": {"state_dtype": "bfloat16"},
    "8bit": {"state_dtype": "8bit"},
    "4bit": {"state_dtype": "4bit"},
}
CODED = ("8bit", "4bit")
# Measured with coded state even where no peer has it.
COMPRESSED = ("adamw", "lion", "adan", "ademamix")

RUNNERS: dict[str, dict[str, Any]] = {
    "compiled": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
}


@dataclass(frozen=True)
class Candidate:
    """An optimizer to measure.

    Args:
        label: what tables call it.
        package: whose it is.
        form: of FORMS, what it compares with.
        make: makes it.
    """

    label: str
    package: str
    form: str
    make: Callable[[Parameters], Any] = field(repr=False)

    @property
    def ours(self) -> bool:
        return self.package == OURS


def base(dtype: torch.dtype) -> Candidate:
    """torch's fused AdamW, beside which everything is timed."""
    form = "bare" if dtype is torch.bfloat16 else "full"
    return Candidate(BASE, "torch", form, lambda p: torch.optim.AdamW(p.tensors, weight_decay=WEIGHT_DECAY, fused=True))


def names() -> tuple[list[str], dict[str, str]]:
    """(the registry's optimizers that can be measured, the others with the reason why not)."""
    able, left_out = [], {}
    for name in hfoptim.list_optimizers():
        info = hfoptim.get_optimizer_info(str(name))
        if info.needs_closure:
            left_out[info.name] = "its step needs a closure"
        elif info.second_order:
            left_out[info.name] = "needs gradients with a graph"
        elif not issubclass(info.opt_class, RuleOptimizer):
            left_out[info.name] = f"is {info.opt_class.__module__}'s own"
        elif info.opt_class.sparse_only:
            left_out[info.name] = "takes sparse gradients alone"
        else:
            able.append(info.name)
    return able, left_out


def ours(name: str, form: str = "full", runner: str = "compiled", **more: Any) -> Candidate:
    """Our optimizer of a name, with its default options and weight decay where it takes any; and with `more`."""
    chosen = options(name, **{**FORMS[form], **RUNNERS[runner], **more})
    opt_class: Any = hfoptim.get_optimizer_info(name).opt_class
    label = " ".join([OURS, name, *([form] if form != "full" else []), *([runner] if runner != "compiled" else [])])
    return Candidate(label, OURS, form, lambda p: opt_class(list(p.named.items()), **chosen))


def options(name: str, **more: Any) -> dict[str, Any]:
    """An optimizer's options as it is measured: its defaults, with weight decay where it takes any; and `more`."""
    known = option_names(name)
    decay: dict[str, Any] = {
        option: WEIGHT_DECAY for option in ("weight_decay", "weight_decay_rate") if option in known
    }
    # What it lists about every parameter belongs into no table.
    quiet = {"verbose": False} if "verbose" in known else {}
    return resolve_options(name, {**decay, **quiet, **more})


def stepper(optimizer: RuleOptimizer) -> Callable[[], Any]:
    """What takes a step of one of ours: `step`, told a loss where the step depends on one."""
    first = optimizer.param_groups[0]["params"][0]
    told: dict[str, Any] = {"loss": torch.ones((), device=first.device)} if optimizer.needs_loss else {}
    return lambda: optimizer.step(**told)


def scope(optimizer: RuleOptimizer) -> Scope:
    """The widest scope among an optimizer's rules."""
    order = list(Scope)
    scopes = [optimizer.rule_for(p, group).scope for group in optimizer.param_groups for p in group["params"]]
    return max(scopes, key=order.index)


# -- peers -----------------------------------------------------------------------------------------------------------


def peers(name: str, dtype: torch.dtype) -> list[Candidate]:
    """The peers' optimizers that are the registry's `name`; packages that are not installed have none.

    Args:
        name: canonical.
        dtype: of the parameters. It decides which of our forms a peer compares with.
    """
    info = hfoptim.get_optimizer_info(name)
    wanted = {info.opt_class.__name__.lower(), name.replace("_", "")}
    found = []
    for package, classes in _packages().items():
        # Most peers keep state in the parameters' dtype; optimi has Kahan's term, bitsandbytes float32 state.
        usual = "bare" if dtype is torch.bfloat16 and package not in ("optimi", "bitsandbytes") else "full"
        for key in sorted(classes):
            stem, form = next(((key.removesuffix(f), f) for f in CODED if key.endswith(f)), (key, usual))
            if stem in wanted and (arguments := _arguments(package, classes[key], info.defaults)) is not None:
                found += _variants(package, classes[key], arguments, form)
    usual = "bare" if dtype is torch.bfloat16 else "full"
    for label, module, make in EXTRA.get(name, []):
        if installed(module):
            found.append(Candidate(label, label.split()[0], usual, make))
    return found


def forms(name: str, dtype: torch.dtype, theirs: Iterable[Candidate] = ()) -> list[str]:
    """Our forms that are measured for an optimizer beside these of the peers."""
    few = [form for form in CODED if name in COMPRESSED or any(form == peer.form for peer in theirs)]
    return ["full", *(["bare"] if dtype is torch.bfloat16 else []), *few]


# Arguments that a peer has under another name, or that it needs besides.
_RENAMED = {"heavyball": {"momentum": "beta"}}
_FIXED: dict[str, dict[str, Any]] = {"optimi": {"triton": False, "kahan_sum": None}}
# Arguments that a peer takes and does not heed.
_IGNORED = {"bitsandbytes": {"nesterov"}}


def _arguments(package: str, theirs: type[Optimizer], defaults: Mapping[str, Any]) -> dict[str, Any] | None:
    """What to construct a peer's class with; None if it does not know what a registry's entry stands for."""
    known = inspect.signature(theirs).parameters
    arguments = dict(_FIXED.get(package, {}))
    if "weight_decay" in known:
        arguments["weight_decay"] = WEIGHT_DECAY
    for option, value in defaults.items():
        option = _RENAMED.get(package, {}).get(option, option)
        if option in known and option not in _IGNORED.get(package, ()):
            arguments[option] = value
        elif value is not None and value is not False:
            return None
    if "lr" in known and known["lr"].default is inspect.Parameter.empty:
        arguments["lr"] = 1e-3
    return arguments


def _variants(package: str, theirs: Any, arguments: dict[str, Any], form: str) -> list[Candidate]:
    """A peer's class; torch's as often as it has implementations."""

    def candidate(way: str | None = None) -> Candidate:
        chosen = arguments if way is None else {**arguments, way: True}
        label = f"{package} {theirs.__name__} {way or ''}".strip()
        return Candidate(label, package, form, lambda p: theirs(p.tensors, **chosen))

    if package != "torch":
        return [candidate()]
    known = inspect.signature(theirs).parameters
    found = [candidate(way) for way in ("fused", "foreach") if way in known]
    return [each for each in found if each.label != BASE]


@cache
def _packages() -> dict[str, dict[str, type[Optimizer]]]:
    """The installed peers' optimizers, by package and by name in lower case."""
    modules = {"torch": "torch.optim", "torchao": "torchao.optim", "bitsandbytes": "bitsandbytes.optim"}
    modules |= {name: name for name in ("pytorch_optimizer", "optimi", "heavyball")}
    found: dict[str, dict[str, type[Optimizer]]] = {}
    with quiet():
        for package, module in modules.items():
            if importlib.util.find_spec(package) is not None:
                found[package] = _classes(package, [importlib.import_module(module)])
        if installed("timm"):
            stems = [path.stem for path in sorted(Path(BARE_FOLDER, "timm", "optim").glob("*.py"))]
            own = [stem for stem in stems if not stem.startswith("_") and stem != "optim_factory"]
            found["timm"] = _classes("timm", [submodule(f"timm.optim.{stem}") for stem in own])
    # torchao's without codes; what takes matrices alone, or a module, is in EXTRA.
    if "torchao" in found:
        found["torchao"]["adamw"] = found["torchao"].pop("_adamw")
    for package, key in (("torch", "muon"), ("timm", "muon"), *(("pytorch_optimizer", n) for n in _BY_HAND)):
        found.get(package, {}).pop(key, None)
    return found


_BY_HAND = ("muon", "adamuon", "adammini")


def _classes(package: str, modules: list[ModuleType]) -> dict[str, type[Optimizer]]:
    return {
        name.lower(): value
        for module in modules
        for name, value in vars(module).items()
        # pytorch_optimizer has torch's classes in its own namespace.
        if isinstance(value, type) and issubclass(value, Optimizer) and value.__module__.split(".")[0] == package
    }


class Both:
    """Two optimizers as one."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts

    def step(self) -> None:
        for part in self.parts:
            part.step()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        return {param: state for part in self.parts for param, state in part.state.items()}


def _hidden(p: Parameters) -> list[dict[str, Any]]:
    """A group with the matrices inside the network and one with everything else."""
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, param in p.named.items():
        groups[why_not_hidden(name, param.shape) is None].append(param)
    return [{"params": params, "use_muon": hidden} for hidden, params in groups.items()]


def _torch_muon(p: Parameters) -> Both:
    matrices, rest = (group["params"] for group in _hidden(p))
    muon = torch.optim.Muon(matrices, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    return Both(muon, torch.optim.AdamW(rest, weight_decay=WEIGHT_DECAY, fused=True))


def _timm_muon(**options: Any) -> Callable[[Parameters], Any]:
    options = {"weight_decay": WEIGHT_DECAY, "nesterov": True, "adjust_lr_fn": "match_rms_adamw", **options}
    return lambda p: load("timm.optim.muon.Muon")(_hidden(p), **options)


def _schedule_free(p: Parameters) -> Any:
    optimizer = load("schedulefree.AdamWScheduleFree")(p.tensors, weight_decay=WEIGHT_DECAY)
    optimizer.train()
    return optimizer


def _with(peer: str, **options: Any) -> Callable[[Parameters], Any]:
    return lambda p: load(peer)(p.tensors, weight_decay=WEIGHT_DECAY, **options)


# Peers under another name than ours, or with other arguments: label, what must be installed, how it is made.
EXTRA: dict[str, list[tuple[str, str, Callable[[Parameters], Any]]]] = {
    "adamw": [("timm AdamWLegacy", "timm", _with("timm.optim.adamw.AdamWLegacy"))],
    "lion": [("lion-pytorch Lion", "lion_pytorch", _with("lion_pytorch.Lion"))],
    "adafactor": [("transformers Adafactor", "transformers", _with("transformers.Adafactor"))],
    "prodigy": [("prodigyopt Prodigy", "prodigyopt", _with("prodigyopt.Prodigy"))],
    "adamw_schedule_free": [
        ("schedulefree AdamWScheduleFree", "schedulefree", _schedule_free),
        (
            "pytorch_optimizer ScheduleFreeAdamW",
            "pytorch_optimizer",
            _with("pytorch_optimizer.ScheduleFreeAdamW"),
        ),
    ],
    "adam_mini": [
        (
            "adam_mini Adam_mini",
            "adam_mini",
            lambda p: load("adam_mini.Adam_mini")(list(p.named.items()), weight_decay=WEIGHT_DECAY, verbose=False),
        ),
        (
            "pytorch_optimizer AdamMini",
            "pytorch_optimizer",
            lambda p: load("pytorch_optimizer.AdamMini")(
                SimpleNamespace(named_parameters=lambda: iter(p.named.items())), weight_decay=WEIGHT_DECAY
            ),
        ),
    ],
    "muon": [
        ("torch Muon, AdamW fused", "torch", _torch_muon),
        ("pytorch_optimizer Muon", "pytorch_optimizer", lambda p: load("pytorch_optimizer.Muon")(_hidden(p))),
    ],
    "nmuon": [("timm Muon", "timm", _timm_muon())],
    "adamuon": [
        ("pytorch_optimizer AdaMuon", "pytorch_optimizer", lambda p: load("pytorch_optimizer.AdaMuon")(_hidden(p)))
    ],
    "nadamuon": [("timm Muon adamuon", "timm", _timm_muon(algo="adamuon"))],
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to themselves what peers say about missing extras, and their compilers about what they compile."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
                yield
        finally:
            logging.disable(logging.NOTSET)
