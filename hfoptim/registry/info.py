"""What the registry knows of an optimizer, and of a wrapper."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from hfoptim.wrappers import Wrapper


@dataclass(frozen=True, eq=False)
class OptimInfo:
    """What the registry knows of an optimizer.

    Args:
        name: canonical name.
        load: gives its class, which may have to be imported first.
        description: one line.
        source: where the algorithm is published.
        defaults: arguments bound to this name that differ from the class's own defaults.
        aliases: other names it answers to.
        hidden_matrices: whether it treats the matrices inside a network unlike its other parameters, and is to be told
            which they are by a group's `use_muon`.
        needs_closure: whether `step` needs a closure that computes the loss again. hfoptim gives one in the Trainer.
        second_order: whether gradients need a graph: `loss.backward(create_graph=True)`. Likewise.
        sparse_only: whether it takes no gradients but sparse ones.
        where: where it is declared, for messages.
        provider: the package it is of.
        outside: whether that is a package of `hfoptim.providers`, whose signature and defaults are its own.
        algorithm: of those, the name of ours with the same equations.
        not_in_trainer: what it needs that no Trainer gives, else "".
    """

    name: str
    load: Callable[[], type[Optimizer]] = field(repr=False)
    description: str
    source: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    hidden_matrices: bool = False
    needs_closure: bool = False
    second_order: bool = False
    sparse_only: bool = False
    where: str = ""
    provider: str = "hfoptim"
    outside: bool = False
    algorithm: str = ""
    not_in_trainer: str = ""

    @property
    def opt_class(self) -> type[Optimizer]:
        """Its class."""
        return self.load()

    @property
    def has_eps(self) -> bool:
        """Whether the class takes `eps`."""
        return "eps" in self._parameters

    @property
    def has_momentum(self) -> bool:
        """Whether the class takes `momentum`."""
        return "momentum" in self._parameters

    @property
    def has_betas(self) -> bool:
        """Whether the class takes `betas`."""
        return "betas" in self._parameters

    @property
    def num_betas(self) -> int:
        """How many `betas` the class takes; 0 without."""
        if not self.has_betas:
            return 0
        betas = self._parameters["betas"]
        return len(betas.default) if isinstance(betas.default, tuple) else str(betas.annotation).count("float")

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.opt_class).parameters

    @property
    def needs(self) -> str | None:
        """What its steps need beside a backward pass of a usual model."""
        if self.needs_closure:
            return "a closure that computes the loss again: step(closure)"
        if self.sparse_only:
            return "sparse gradients for all parameters it is given: nn.Embedding(..., sparse=True)"
        if self.not_in_trainer:
            return self.not_in_trainer
        return "gradients with a graph: loss.backward(create_graph=True)" if self.second_order else None

    @property
    def in_trainer(self) -> bool:
        """Whether a Trainer can give it all that its steps need; not where that is up to the model."""
        return not self.sparse_only and not self.not_in_trainer


@dataclass(frozen=True)
class WrapperInfo:
    """What the registry knows of an optimizer around an optimizer: chosen by `<name>_<name of an optimizer>`.

    Args:
        name: what goes in front of the optimizer's name.
        wrapper: its class.
        description, source, needs_closure: as for optimizers.
    """

    name: str
    wrapper: type[Wrapper]
    description: str
    source: str
    needs_closure: bool = False
