"""What the tables of other packages' optimizers are made of, and how a class of theirs is imported."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch.optim import Optimizer


@dataclass(frozen=True)
class Outside:
    """An optimizer of another package.

    Args:
        name: what it is chosen by, the provider's prefix in front.
        path: its class, with the module: "bitsandbytes.optim.AdamW8bit".
        algorithm: the name of ours that follows the same equations.
        summary: what it is, in a few words.
        bound: arguments that come with the name.
        aliases: other names.
        needs: what it needs that a Trainer, or a call by name, does not give; "" for nothing.
    """

    name: str
    path: str
    algorithm: str
    summary: str
    bound: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    needs: str = ""


@dataclass(frozen=True)
class Provider:
    """A package whose optimizers can be chosen by name here, too, once it is installed.

    Args:
        name: the distribution.
        prefix: what its names begin with.
        package: what is imported.
        install: what to do to have it.
        source: where it is published.
        optimizers: its optimizers.
    """

    name: str
    prefix: str
    package: str
    install: str
    source: str
    optimizers: tuple[Outside, ...]

    @property
    def installed(self) -> bool:
        """Whether the package can be found; it is not imported for that."""
        try:
            return importlib.util.find_spec(self.package) is not None
        except ModuleNotFoundError:  # apex.optimizers where there is no apex
            return False

    def load(self, which: Outside) -> type[Optimizer]:
        """Import one of its classes.

        Raises:
            ImportError: the package is not installed, or its version has no such class; says what to install.
        """
        if not self.installed:
            raise ImportError(f"{which.name} is {which.path}, and {self.name} is not installed: {self.install}")
        module, _, name = which.path.rpartition(".")
        try:
            cls: type[Optimizer] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"{which.name} is {which.path}, which cannot be had from {self.name} {self._version}: {error}; "
                f"{self.install}"
            ) from error
        return cls

    @property
    def _version(self) -> str:
        try:
            return version(self.name)
        except PackageNotFoundError:
            return "of unknown version"
