"""`hfoptim schedules`: list the learning-rate schedules, or draw them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hfoptim.cli.arguments import THEIRS, fail


def list_schedules(context: typer.Context) -> None:
    """List the learning-rate schedules with their options, the required ones first and marked with a star."""
    if context.invoked_subcommand is not None:
        return
    from hfoptim import schedules
    from hfoptim.registry.transformers_names import schedule_names

    grid = Table()
    grid.add_column("name", no_wrap=True)
    grid.add_column("")
    grid.add_column("description, and options after a colon")
    for name in schedules.list_schedules():
        info = schedules.get_schedule_info(name)
        required = [f"{key}*" for key in info.required_kwargs]
        others = [key for key in info.kwargs if key not in info.required_kwargs and key != "last_epoch"]
        options = ", ".join(required + others)
        mark = "*" if name in schedule_names() else ""
        grid.add_row(name, mark, f"{info.description}\n: {options}" if options else info.description)
    Console().print(grid)
    typer.echo(THEIRS.format("lr_scheduler_type", "schedule"))


def plot_schedules(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Names of schedules.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture; its ending says which kind: .png, .svg, .pdf.")
    ] = Path("schedules.png"),
    all_of_them: Annotated[
        bool, typer.Option("--all", help="All schedules that do not follow a metric, each in a diagram of its own.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Steps of the whole schedule.")] = 1000,
    warmup: Annotated[float, typer.Option(help="Steps of warm-up, or below 1 a share of all steps.")] = 0.1,
    lr: Annotated[float, typer.Option(help="Initial learning rate; 1 shows multipliers.")] = 1.0,
    kwargs: Annotated[
        str | None,
        typer.Option(
            help="Options as JSON: of the one name, '{\"num_cycles\": 2}', or of several, "
            '\'{"cosine": {"num_cycles": 2}}\'.'
        ),
    ] = None,
    columns: Annotated[
        int | None, typer.Option(help="A diagram for each, so many in a row. (default: all in one; 5 with --all)")
    ] = None,
) -> None:
    """Draw schedules over the steps. Needs matplotlib."""
    from hfoptim import schedules

    if bool(names) == all_of_them:
        fail("give names of schedules or --all; `hfoptim schedules` shows the names")
    if all_of_them and kwargs is not None:
        fail("--kwargs is for schedules given by name, --all has examples of its own")
    try:
        if all_of_them:
            what: list[Any] = [schedules.drawing.examples(warmup, steps)]
            columns = columns or 5
        else:
            options = _schedule_options(kwargs, names or [])
            what = [(name, options.get(name, {})) for name in names or []]
        lengths = {"num_warmup_steps": warmup, "num_training_steps": steps}
        schedules.plot(*what, **lengths, lr=lr, columns=columns, file=output)  # type: ignore[arg-type]
    except (ImportError, OSError, TypeError, ValueError) as error:
        fail(str(error))
    typer.echo(f"written to {output}")


def _schedule_options(text: str | None, names: list[str]) -> dict[str, dict[str, Any]]:
    """The options of each name, from `--kwargs`."""
    try:
        given = {} if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--kwargs is not JSON ({error}), got {text!r}") from None
    if not isinstance(given, dict):
        raise ValueError(f"--kwargs must be a JSON object, got {text!r}")
    if given and all(isinstance(value, dict) for value in given.values()):
        strange = [name for name in given if name not in names]
        if strange:
            raise ValueError(f"--kwargs has options of {strange[0]!r}, which is not among the names")
        return given
    if len(names) > 1 and given:
        raise ValueError(f"--kwargs: say whose options these are, {{{names[0]!r}: {{...}}}}, got {text!r}")
    return dict.fromkeys(names, given)
