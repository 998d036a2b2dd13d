"""Names of parameters without what wrappers put in: `_orig_mod.` of torch.compile, `module.` of DDP, and the like.

The same parameter is `layers.0.weight` in a model, `_orig_mod.layers.0.weight` once the model is compiled,
`layers._orig_mod.0.weight` where only its layers are, and `module.layers.0.weight` in DistributedDataParallel. Names
are compared without these parts, which are *bare* names here. They are kept and shown as they are.

`module` may be a part of a model itself. Where the modules are at hand, it is a wrapper's if its owner has nothing
else; where there are only names, those that would become equal without it keep it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatch

from torch import nn

# Under these names wrappers hold the module they go around, and nothing else has parts of these names.
_HOLDERS = (
    "_orig_mod",  # torch.compile
    "_checkpoint_wrapped_module",  # checkpoint_wrapper and offload_wrapper of torch
    "_fsdp_wrapped_module",  # FSDP of torch, FairScale and XLA
    "_fpw_module",  # FlattenParamsWrapper of FairScale and XLA
)
# Under these too, but a model may have parts of these names itself.
_AMBIGUOUS = (
    "module",  # DistributedDataParallel, DataParallel, AveragedModel of torch, DeepSpeed, timm's ModelEma, Megatron
    "_module",  # Opacus' GradSampleModule
    *("_forward_module", "_original_module"),  # Lightning Fabric
)

_HOLDER = re.compile(rf"(^|\.)(?:(?:{'|'.join(_HOLDERS)})\.)+")
_ANY_HOLDER = re.compile(rf"(^|\.)(?:(?:{'|'.join(_HOLDERS + _AMBIGUOUS)})\.)+")
# In a regular expression the dot may be written `\.`. What is ambiguous is a wrapper's at the beginning only.
_IN_PATTERN = re.compile(rf"(?:^|(?<=[.^(|)]))(?:(?:{'|'.join(_HOLDERS)})\\?\.)+")
_AT_THE_START = re.compile(rf"^(\^?)(?:(?:{'|'.join(_AMBIGUOUS)})\\?\.)+")


def bare(name: str) -> str:
    """A name without the parts of wrappers, `module` too: for rules that look at one name alone."""
    return _ANY_HOLDER.sub(r"\1", name)


def bare_names(names: Iterable[str]) -> dict[str, str]:
    """The bare name of each of several names. Those that would become equal keep `module`, or everything."""
    names = list(dict.fromkeys(names))
    return _told_apart(names, bare, lambda name: _HOLDER.sub(r"\1", name))


def bare_names_of(model: nn.Module) -> dict[str, str]:
    """The bare name of every parameter of a model, by its name in `model.named_parameters(remove_duplicate=False)`.

    Those of different parameters differ.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    places = {"": ("", model)}
    found: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        above, _, own = path.rpartition(".")
        place = ""
        if path:
            place, owner = places[above]
            place = place if _holds(owner, own) else f"{place}{own}."
        places[path] = place, module
        for name in module._parameters:
            found[f"{path}.{name}" if path else name] = place + name
    # Wrappers may give names of their own.
    names = {name: found.get(name, _HOLDER.sub(r"\1", name)) for name in named}
    owners: dict[str, set[int]] = {}
    for name, short in names.items():
        owners.setdefault(short, set()).add(id(named[name]))
    return {name: short if len(owners[short]) == 1 else name for name, short in names.items()}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers around it."""
    while (held := next((name for name in model._modules if _holds(model, name)), None)) is not None:
        inside = model._modules[held]
        if inside is None:
            break
        model = inside
    return model


def matched(pattern: str, names: Mapping[str, str]) -> list[str]:
    """The names that a pattern matches, with the wildcards `*`, `?` and `[...]`, as they are or bare.

    A pattern that matches none is read without the parts of wrappers: it may have been written for a wrapped model.

    Args:
        pattern: the pattern.
        names: the names with their bare ones, as `bare_names` and `bare_names_of` give them.
    """
    found = [name for name, short in names.items() if any(n == pattern or fnmatch(n, pattern) for n in (name, short))]
    short_pattern = _bare_pattern(pattern)
    if found or short_pattern == pattern:
        return found
    return [name for name, short in names.items() if short == short_pattern or fnmatch(short, short_pattern)]


def searched(pattern: str, names: Mapping[str, str]) -> list[str]:
    """The names in which a regular expression is found, otherwise as `matched`."""
    found = [name for name, short in names.items() if re.search(pattern, name) or re.search(pattern, short)]
    short_pattern = _bare_pattern(pattern)
    if found or short_pattern == pattern:
        return found
    return [name for name, short in names.items() if re.search(short_pattern, short)]


def aligned(wanted: Collection[str], given: Collection[str]) -> dict[str, str] | None:
    """Which of the names given each of the wanted ones is; None unless each is one and none is left over.

    They are compared exactly if that works, else without the parts of wrappers, and without `module` at last.
    """
    for short in (str, lambda name: _HOLDER.sub(r"\1", name), bare):
        own, others = {short(name): name for name in wanted}, {short(name): name for name in given}
        if len(own) == len(wanted) and len(others) == len(given) and own.keys() == others.keys():
            return {name: others[shortened] for shortened, name in own.items()}
    return None


def difference(wanted: Collection[str], given: Collection[str]) -> tuple[list[str], list[str]]:
    """The wanted names that are not given, and those given that are not wanted, compared as by `aligned`."""
    own, others = bare_names(wanted), bare_names(given)
    known, theirs = {*own.values(), *own}, {*others.values(), *others}
    return (
        [name for name, short in own.items() if not {name, short} & theirs],
        [name for name, short in others.items() if not {name, short} & known],
    )


def listed(entries: Iterable[str], most: int = 5) -> str:
    """The first entries of several, and how many more there are: "a, b and 3 more"."""
    entries = list(entries)
    more = len(entries) - most
    return ", ".join(entries[:most]) + (f" and {more} more" if more > 0 else "")


def _holds(owner: nn.Module, name: str) -> bool:
    """Whether a wrapper has the module it goes around under this name."""
    if name in _HOLDERS:
        return True
    alone = owner._modules.keys() <= {*_AMBIGUOUS} and all(param is None for param in owner._parameters.values())
    return name in _AMBIGUOUS and alone


def _told_apart(names: list[str], *shorter: Callable[[str], str]) -> dict[str, str]:
    """Each name by the first of these functions, or as it is, such that none becomes equal to another's."""
    found = dict(zip(names, names, strict=True))
    for shorten in reversed(shorter):
        counts = Counter(shorten(name) for name in names)
        found |= {name: shorten(name) for name in names if counts[shorten(name)] == 1}
    return found


def _bare_pattern(pattern: str) -> str:
    return _AT_THE_START.sub(r"\1", _IN_PATTERN.sub("", pattern))
