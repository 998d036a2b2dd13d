"""What commands share: options in words, names that a shell completes, how a mistake ends."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any, NoReturn

import typer

USAGE_ERROR, INTERRUPTED = 2, 130
# Under a list with names that transformers has, too.
THEIRS = "* In TrainingArguments {0}=NAME means transformers' own {1}; ours is {0}=hfoptim_NAME."


def complete_names(incomplete: str) -> list[str]:
    """The names that a shell completes, those of other packages too."""
    from hfoptim.registry.catalogue import known_optimizers

    known = known_optimizers()
    return [name for name in (*known.names(), *known.names(outside=True)) if name.startswith(incomplete.lower())]


def given_options(options: Iterable[str] | None) -> dict[str, Any]:
    """Arguments such as `weight_decay=0.1` as options."""
    return {key: _value(text) for key, _, text in (option.partition("=") for option in options or ())}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def fail(message: str) -> NoReturn:
    """End the command with a message and the exit code of a mistake in its arguments."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(USAGE_ERROR)
