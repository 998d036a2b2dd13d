"""The command `hfoptim`: compare optimizers on a language model, list them, explain one; list and draw schedules."""

from __future__ import annotations

from typing import Annotated

import typer

from hfoptim.cli.catalogue import info, list_names
from hfoptim.cli.comparison import compare
from hfoptim.cli.models import groups, kernels, memory
from hfoptim.cli.schedules import list_schedules, plot_schedules

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the console script."""
    app()


def _version(asked: bool) -> None:
    if asked:
        import hfoptim

        typer.echo(f"hfoptim {hfoptim.__version__}")
        raise typer.Exit()


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app = typer.Typer(
    name="hfoptim",
    help="Optimizers and learning-rate schedules for HuggingFace Transformers, each chosen by name.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.callback()(_options)
app.command()(compare)
app.command("list")(list_names)
for _command in (info, kernels, groups, memory):
    app.command()(_command)

_schedules = typer.Typer(help="List the learning-rate schedules, or draw them.", invoke_without_command=True)
_schedules.callback()(list_schedules)
_schedules.command("plot")(plot_schedules)
app.add_typer(_schedules, name="schedules")
