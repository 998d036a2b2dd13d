"""`hfoptim groups`, `memory` and `kernels`: what an optimizer does with the parameters of a model."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hfoptim.cli.arguments import complete_names, fail, given_options


def groups(
    model: Annotated[str, typer.Argument(help="Hub model or local folder; its config.json is all that is read.")],
    optim: Annotated[str, typer.Option(help="Name of an optimizer, in any case.")] = "adamw",
    options: Annotated[
        list[str] | None, typer.Argument(help="Options, such as weight_decay=0.1 or layer_decay=0.75.")
    ] = None,
) -> None:
    """Show which parameter of a model an optimizer takes how: group, rule, learning rate, weight decay, and why."""
    from hfoptim.compare.config import CompareError
    from hfoptim.compare.model import empty_model
    from hfoptim.factory.placements import TITLES, describe_param_groups

    given = given_options(options)
    try:
        found = describe_param_groups(empty_model(model), optim, **given)
    except (ValueError, TypeError, CompareError) as error:
        fail(str(error))
    rows = [TITLES, *found.rows()]
    used = [any(row[column] for row in rows[1:]) for column in range(len(TITLES))]
    grid = Table()
    for title, shown in zip(TITLES, used, strict=True):
        if shown:
            grid.add_column(title, overflow="fold", justify="right" if title in ("times", "lr", "group") else "left")
    for row in rows[1:]:
        grid.add_row(*(escape(cell) for cell, shown in zip(row, used, strict=True) if shown))
    Console(highlight=False).print(grid)


def memory(
    model: Annotated[str, typer.Argument(help="Hub model or local folder; its config.json is all that is read.")],
    optim: Annotated[str, typer.Option(help="Name of an optimizer, in any case.")] = "adamw",
    options: Annotated[
        list[str] | None, typer.Argument(help="Options, such as master_weights=16 or gradient_release=True.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the parameters that are trained: float32, bfloat16.")] = "float32",
    state_dtype: Annotated[str, typer.Option(help="Of the state: float32, bfloat16, 8bit, 4bit.")] = "float32",
    ranks: Annotated[int, typer.Option(help="Number of processes.")] = 1,
    strategy: Annotated[str | None, typer.Option(help="How they share: ddp or fsdp.")] = None,
    device: Annotated[str, typer.Option(help="Where the step runs: cuda or cpu.")] = "cuda",
) -> None:
    """Predict what lies in the memory of a process while an optimizer steps a model: all but activations."""
    import torch

    from hfoptim.compare.config import CompareError
    from hfoptim.compare.model import empty_model
    from hfoptim.factory.memory import predict_memory

    given = given_options(options)
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        fail(f"--dtype {dtype} is no dtype of parameters; give float32, bfloat16 or float16")
    try:
        given = {**({} if state_dtype == "float32" else {"state_dtype": state_dtype}), **given}
        made = empty_model(model).to(kind)
        found = predict_memory(made, optim, ranks=ranks, strategy=strategy, device=device, **given)
    except (ValueError, TypeError, CompareError) as error:
        fail(str(error))
    grid = Table("", "", "bytes per trained parameter")
    for column in grid.columns[1:]:
        column.justify = "right"
    for row in found.rows():
        grid.add_row(*(escape(cell) for cell in row), end_section=row[0] == "the step itself")
    Console(highlight=False).print(grid)


def kernels(
    name: Annotated[str, typer.Argument(help="Name of an optimizer, in any case.", autocompletion=complete_names)],
    options: Annotated[list[str] | None, typer.Argument(help="Its options, such as weight_decay=0.1.")] = None,
    shape: Annotated[str, typer.Option(help="Of the parameter that is stepped.")] = "512,768",
) -> None:
    """Show what an optimizer's rules compute, in which passes over memory, and the C++ of their kernels."""
    import torch

    import hfoptim
    from hfoptim.engine.codegen import show
    from hfoptim.registry.facts import step

    try:
        param = torch.nn.Parameter(torch.ones([int(size) for size in shape.split(",")]))
        given = given_options(options)
        optimizer = hfoptim.create_optimizer_v2([("weight", param)], name, **{**given, "fused": True})
        param.grad = torch.ones_like(param)
        step(optimizer)
    except (ValueError, TypeError, RuntimeError) as error:
        fail(str(error))
    for title, text in show.known().items():
        typer.echo(f"{title}\n\n{text}")
