"""The table of names: one entry for every name an optimizer can be chosen by, and nothing imported for it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from torch.optim import LBFGS, Optimizer

from hfoptim import optimizers
from hfoptim.engine import Name, checks
from hfoptim.engine.discovery import NEEDS, paper_of, summary_of
from hfoptim.providers import PROVIDERS
from hfoptim.registry.info import OptimInfo, WrapperInfo
from hfoptim.wrappers import (
    EMA,
    GPA,
    GSAM,
    SAM,
    SVRG,
    TRAC,
    WSAM,
    BAdam,
    EMANesterov,
    FriendlySAM,
    GrokFast,
    Lookahead,
    LookSAM,
    Magma,
    Mechanic,
    ScheduleFree,
    around,
)

# Where other distributions declare their optimizers: `my_name = "my_package.my_module:MyClass"`.
ENTRY_POINTS = "hfoptim.optimizers"


# Of two names of which one begins with the other, the longer one first.
WRAPPERS = (
    WrapperInfo(
        "badam",
        BAdam,
        "one block of layers at a time, each with new state",
        "https://arxiv.org/abs/2404.02827",
    ),
    WrapperInfo(
        "ema_nesterov",
        EMANesterov,
        "each step begins ahead of the weights, along an average of the ways they went",
        "https://arxiv.org/abs/2605.25395",
    ),
    WrapperInfo(
        "ema",
        EMA,
        "an average of the weights beside it, to evaluate and to save",
        "https://doi.org/10.1137/0330046",
    ),
    WrapperInfo(
        "friendlysam",
        FriendlySAM,
        "SAM along what is new in the gradient; its step needs a closure",
        "https://arxiv.org/abs/2403.12350",
        needs_closure=True,
    ),
    WrapperInfo(
        "gsam",
        GSAM,
        "SAM that lowers the gap between the worst point and the weights, too; its step needs a closure",
        "https://arxiv.org/abs/2203.08065",
        needs_closure=True,
    ),
    WrapperInfo(
        "gpa",
        GPA,
        "trained between its weights and an exponential average of them, which is evaluated and saved",
        "https://arxiv.org/abs/2512.17131",
    ),
    WrapperInfo(
        "grokfast",
        GrokFast,
        "gradients whose slow part is amplified",
        "https://arxiv.org/abs/2405.20233",
    ),
    WrapperInfo(
        "lookahead",
        Lookahead,
        "weights that follow slowly, and pull back every 6 steps",
        "https://arxiv.org/abs/1907.08610",
    ),
    WrapperInfo(
        "looksam",
        LookSAM,
        "SAM whose second gradient is made every 10 steps; its step needs a closure",
        "https://arxiv.org/abs/2203.02714",
        needs_closure=True,
    ),
    WrapperInfo(
        "magma",
        Magma,
        "updates left out at random, the others shortened where gradient and momentum disagree",
        "https://arxiv.org/abs/2602.15322",
    ),
    WrapperInfo(
        "mechanic",
        Mechanic,
        "its learning rate is found",
        "https://arxiv.org/abs/2306.00144",
    ),
    WrapperInfo(
        "sam",
        SAM,
        "gradients from the worst point near the weights; its step needs a closure",
        "https://arxiv.org/abs/2010.01412",
        needs_closure=True,
    ),
    WrapperInfo(
        "schedule_free",
        ScheduleFree,
        "an average of the weights in place of a learning-rate schedule",
        "https://arxiv.org/abs/2405.15682",
    ),
    WrapperInfo(
        "svrg",
        SVRG,
        "gradients of less variance, with the gradient of all batches at a snapshot; its step needs a closure",
        "https://arxiv.org/abs/2311.05589",
        needs_closure=True,
    ),
    WrapperInfo(
        "trac",
        TRAC,
        "the way from the first weights scaled by a number that is found",
        "https://arxiv.org/abs/2405.16642",
    ),
    WrapperInfo(
        "wsam",
        WSAM,
        "SAM that weighs the sharpness, which it can take apart from the loss; its step needs a closure",
        "https://arxiv.org/abs/2305.15817",
        needs_closure=True,
    ),
)

_OF_TORCH = (
    OptimInfo(
        "lbfgs",
        lambda: LBFGS,
        "Limited-memory quasi-Newton method of torch.optim; its step needs a closure",
        "https://doi.org/10.1007/BF01589116",
        needs_closure=True,
        where="torch.optim.LBFGS",
    ),
)

# Optimizers with others around them, and options, that have a name of their own.
COMPOSED = (
    OptimInfo(
        "badam",
        lambda: around(BAdam, _loaded("hfoptim.optimizers.adam", "Adam")),
        "AdamW for one block of layers at a time, each with new state",
        "https://arxiv.org/abs/2404.02827",
        {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "decouple_wd": True},
        where="hfoptim.registry",
    ),
    OptimInfo(
        "ranger",
        lambda: around(Lookahead, _loaded("hfoptim.optimizers.radam", "RAdam")),
        "RAdam, decoupled weight decay and gradient centralization, with Lookahead around it",
        "https://arxiv.org/abs/1908.00700",
        {
            "betas": (0.95, 0.999),
            "eps": 1e-5,
            "decoupled_weight_decay": True,
            "gradient_centralization": True,
        },
        where="hfoptim.registry",
    ),
    OptimInfo(
        "ranger21",
        lambda: around(Lookahead, _loaded("hfoptim.optimizers.ranger21", "Ranger21Base")),
        "positive-negative momentum, stable decay, norm loss and clipped gradients, with Lookahead around it",
        "https://arxiv.org/abs/2106.13731",
        {"gradient_centralization": True, "adaptive_clip": 0.01, "lookahead_k": 5},
        where="hfoptim.registry",
    ),
)


def key(name: str) -> str:
    """What a name and all its spellings have in common."""
    return name.lower().replace("-", "").replace("_", "")


class Catalogue:
    """The entries by name. Those of entry points are imported when somebody asks for more than their names.

    Args:
        infos: entries to begin with.
    """

    def __init__(self, infos: Iterable[OptimInfo] = ()) -> None:
        self._entries: dict[str, OptimInfo | EntryPoint] = {}
        self._names: dict[str, str] = {}
        for info in infos:
            self.add(info)

    def add(self, info: OptimInfo) -> None:
        """Add an entry; one of the same place, as of a notebook's cell run again, replaces it.

        Raises:
            ValueError: another one has its name or one of its aliases.
        """
        for name in (info.name, *info.aliases):
            self._claim(name, info.name, info.where)
        self._entries[info.name] = info

    def add_entry_point(self, point: EntryPoint) -> None:
        """Add what an installed distribution declares.

        Raises:
            ValueError: another one has its name.
        """
        name = point.name.lower().replace("-", "_")
        self._claim(name, name, point.value)
        self._entries[name] = point

    def _claim(self, name: str, canonical: str, where: str) -> None:
        other = self._names.get(key(name))
        holder = other and _where(self._entries[other])
        if holder and holder != where:
            raise ValueError(f"{where} claims the name {name!r}, which {holder} has; give it another one")
        self._names[key(name)] = canonical

    def canonical(self, name: str) -> str | None:
        """The name that a spelling or an alias means; None for what is not known."""
        return self._names.get(key(name))

    def names(self, outside: bool = False) -> list[str]:
        """All canonical names of one kind, sorted.

        Args:
            outside: those of other packages, see `hfoptim.providers`, in place of the others.
        """
        return sorted(name for name, entry in self._entries.items() if _is_outside(entry) is outside)

    def spellings(self, spelled: str) -> list[str]:
        """All names and aliases of the kind that a name is meant to be of, for what may have been meant."""
        outside = any(key(spelled).startswith(key(provider.prefix)) for provider in PROVIDERS)
        kind = [entry for entry in self._entries.values() if _is_outside(entry) is outside]
        aliases = [alias for entry in kind if isinstance(entry, OptimInfo) for alias in entry.aliases]
        return [*(entry.name for entry in kind), *aliases]

    def by_class(self) -> dict[str, str]:
        """For the name of every class the first canonical name that it has; not of other packages' classes."""
        found: dict[str, str] = {}
        for name, entry in self._entries.items():
            if not _is_outside(entry):
                found.setdefault(re.split(r"[.:]", _where(entry))[-1], name)
        return found

    def get(self, name: str) -> OptimInfo:
        """The entry of a canonical name.

        Raises:
            ImportError, AttributeError: its entry point leads nowhere.
            TypeError, ValueError: its entry point leads to something else than an optimizer of that name.
        """
        entry = self._entries[name]
        if isinstance(entry, EntryPoint):
            entry = self._entries[name] = _of_entry_point(name, entry)
            self.add(entry)
        return entry


def _is_outside(entry: OptimInfo | EntryPoint) -> bool:
    return isinstance(entry, OptimInfo) and entry.outside


def _where(entry: OptimInfo | EntryPoint) -> str:
    return entry.where if isinstance(entry, OptimInfo) else entry.value


def _of_entry_point(name: str, point: EntryPoint) -> OptimInfo:
    cls = point.load()
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
        raise TypeError(f"the entry point {point.name} = {point.value!r} is no class of torch.optim.Optimizer")
    declared = vars(cls).get("names") or (Name(name),)
    for info in _infos_of(cls, declared, point.value):
        if info.name == name:
            return info
    raise ValueError(
        f"the entry point {point.name} = {point.value!r} has another name than the class, which declares "
        f"{', '.join(repr(each.name) for each in declared)}"
    )


@functools.cache
def known_optimizers() -> Catalogue:
    """The one there is: of this package, of torch, and of the distributions that are installed.

    Raises:
        ValueError: two modules of this package claim one name, or a declaration is wrong.
    """
    found = Catalogue((*_of_package(), *_OF_TORCH, *_of_providers()))
    for point in entry_points(group=ENTRY_POINTS):
        _add_if_free(found, point)
    return found


def _add_if_free(found: Catalogue, point: EntryPoint) -> None:
    """Add an entry point of another package; where its name is taken, the others are of use all the same."""
    try:
        found.add_entry_point(point)
    except ValueError as error:
        checks.warn(f"an optimizer is left out: {error}")


C = TypeVar("C", bound=type[Optimizer])


def register(cls: C) -> C:
    """Make an optimizer known by the names that its class declares, everywhere: also usable as a decorator.

        @hfoptim.register
        class Mine(hfoptim.Lion):
            names = (hfoptim.Name("mine"),)

    Distributions that are installed declare theirs in the entry points `hfoptim.optimizers` instead.

    Args:
        cls: the class, of torch.optim.Optimizer, with `names` of its own.

    Returns:
        The class.

    Raises:
        TypeError: it is no class of an optimizer, or declares no names.
        ValueError: one of its names is taken; the message says by whom.
    """
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
        raise TypeError(f"{cls!r} is no class that derives from torch.optim.Optimizer")
    names = vars(cls).get("names")
    if not (names and isinstance(names, tuple) and all(isinstance(name, Name) for name in names)):
        raise TypeError(
            f'{cls.__name__} declares no names; write names = (Name("my_name", paper="https://..."),) in it'
        )
    for info in _infos_of(cls, names, f"{cls.__module__}.{cls.__qualname__}"):
        known_optimizers().add(info)
    return cls


def _infos_of(cls: type[Optimizer], names: tuple[Name, ...], where: str) -> Iterator[OptimInfo]:
    """The entries of a class that is there."""
    needs = {need: bool(getattr(cls, need, False)) for need in NEEDS}
    return _infos(names, summary_of(cls.__doc__), paper_of(cls.__doc__), needs, lambda: cls, where)


def _infos(
    names: tuple[Name, ...],
    summary: str,
    paper: str,
    needs: Mapping[str, Any],
    load: Callable[[], type[Optimizer]],
    where: str,
) -> Iterator[OptimInfo]:
    for name in names:
        yield OptimInfo(
            name.name,
            load,
            name.summary or summary,
            name.paper or names[0].paper or paper,
            dict(name.options),
            name.aliases,
            **needs,
            where=where,
            provider=where.partition(".")[0].partition(":")[0],
        )


def _of_package() -> Iterator[OptimInfo]:
    for module in optimizers.found():
        for each in module.classes:
            load = functools.partial(_loaded, each.module, each.name)
            yield from _infos(each.names, each.summary, each.paper, each.needs, load, f"{each.module}.{each.name}")


def _of_providers() -> Iterator[OptimInfo]:
    for provider in PROVIDERS:
        for each in provider.optimizers:
            yield OptimInfo(
                each.name,
                functools.partial(provider.load, each),
                f"{provider.name}: {each.summary}",
                provider.source,
                each.bound,
                each.aliases,
                needs_closure=each.algorithm == "lbfgs",
                sparse_only=each.algorithm == "sparse_adam",
                where=each.path,
                provider=provider.name,
                outside=True,
                algorithm=each.algorithm,
                not_in_trainer=each.needs,
            )


def _loaded(module: str, name: str) -> type[Optimizer]:
    cls: type[Optimizer] = getattr(import_module(module), name)
    return cls
