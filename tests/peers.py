"""Peers' optimizers, for comparison: imported without the optional packages that their top level pulls in."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# Packages whose `__init__` wants more than the optimizers need: timm torchvision, galore_torch and apollo_torch
# bitsandbytes, torchao its kernels. They lie in a folder of their own: transformers would take a timm without
# torchvision for a whole one, and fail.
_BARE = ("timm", "galore_torch", "apollo_torch", "torchao")
# What their modules ask other parts of the package for, and tests of optimizers do not call.
_STAND_INS = {"timm.optim._optim_factory": {"timm.models": "group_parameters"}}
BARE_FOLDER = os.path.join(sys.prefix, "peers")


class MissingPeer(ImportError):
    """A peer is not installed."""


def installed(name: str) -> bool:
    """Whether the package of a peer is there."""
    return _find(name.split(".")[0]) is not None


def _find(package: str) -> ModuleSpec | None:
    return PathFinder.find_spec(package, [BARE_FOLDER]) if package in _BARE else importlib.util.find_spec(package)


def load(name: str) -> Any:
    """A peer's class or function.

    Args:
        name: module and attribute, for example "timm.optim.lion.Lion".

    Raises:
        MissingPeer: its package is not installed.
    """
    module, _, attribute = name.rpartition(".")
    if not installed(name):
        raise MissingPeer(f"{name.split('.')[0]} is not installed")
    if module.split(".")[0] in _BARE:
        return getattr(submodule(module), attribute)
    return getattr(importlib.import_module(module), attribute)


@cache
def submodule(name: str) -> ModuleType:
    """A submodule, imported with bare parents: no `__init__` of theirs runs.

    Args:
        name: for example "timm.optim.lion".
    """
    parents = name.split(".")[:-1]
    root = parents[0]
    spec = _find(root)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPeer(f"{root} is not installed")
    path = next(iter(spec.submodule_search_locations))
    whole = {m: sys.modules.pop(m) for m in list(sys.modules) if m == root or m.startswith(root + ".")}
    try:
        for i, part in enumerate(parents):
            path = os.path.join(path, part) if i else path
            bare = ModuleType(".".join(parents[: i + 1]))
            bare.__path__ = [path]
            sys.modules[bare.__name__] = bare
        for module, attribute in _STAND_INS.get(name, {}).items():
            sys.modules[module] = ModuleType(module)
            setattr(sys.modules[module], attribute, None)
        return importlib.import_module(name)
    finally:
        # Who imports the package elsewhere gets the whole one, if there is one.
        for loaded in [m for m in sys.modules if m == root or m.startswith(root + ".")]:
            del sys.modules[loaded]
        sys.modules.update(whole)


class KerasOptimizer:
    """An optimizer of Keras over torch tensors, in float64, with the face of a torch optimizer.

    Args:
        named_params: (name, tensor) pairs; the tensors receive the new values after every step.
        learning_rate: a number, or a function of the step count.
        decays: which names are decayed.
        name: its class in keras.optimizers.
        **options: those of that class.
    """

    def __init__(
        self,
        named_params: Sequence[tuple[str, Tensor]],
        learning_rate: float | Callable[[int], float],
        decays: Callable[[str], bool],
        name: str = "Adam",
        **options: Any,
    ) -> None:
        if not installed("keras"):
            raise MissingPeer("keras is not installed")
        import keras

        assert keras.config.backend() == "torch", "set KERAS_BACKEND=torch before keras is imported"
        rate: Any = learning_rate
        if callable(learning_rate):
            rate = _keras_schedule(learning_rate)
        with _float64():
            self._params = [param for _, param in named_params]
            self._variables = [keras.Variable(p.detach().clone(), dtype="float64", name=n) for n, p in named_params]
            self._optimizer = getattr(keras.optimizers, name)(learning_rate=rate, **options)
            exempt = [v for v in self._variables if not decays(v.name)]
            if exempt:
                self._optimizer.exclude_from_weight_decay(var_list=exempt)
            self._optimizer.build(self._variables)
        self.param_groups = [{"params": self._params, "lr": None if callable(learning_rate) else learning_rate}]

    @torch.no_grad()
    def step(self) -> None:
        pairs = [(p.grad.clone(), v) for p, v in zip(self._params, self._variables, strict=True) if p.grad is not None]
        with _float64():
            if self.param_groups[0]["lr"] is not None:
                self._optimizer.learning_rate = self.param_groups[0]["lr"]
            self._optimizer.apply([grad for grad, _ in pairs], [variable for _, variable in pairs])
        for param, variable in zip(self._params, self._variables, strict=True):
            param.copy_(variable.value)


@contextmanager
def _float64() -> Iterator[None]:
    """Keras turns Python numbers into its default type, float32 unless told otherwise."""
    import keras

    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def _keras_schedule(function: Callable[[int], float]) -> Any:
    import keras

    class Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc, name-defined]
        def __call__(self, step: Any) -> Any:
            return function(int(step))

    return Schedule()


def decayed_by_name(include: Sequence[str] | None, exclude: Sequence[str] | None) -> Callable[[str], bool]:
    """Which names transformers' AdamWeightDecay decays: those included, and of the others those not excluded."""

    def decays(name: str) -> bool:
        if any(re.search(pattern, name) for pattern in include or ()):
            return True
        return not any(re.search(pattern, name) for pattern in exclude or ())

    return decays
