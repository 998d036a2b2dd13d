"""`hfoptim list` and `hfoptim info`: which optimizers there are, and what one of them is."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hfoptim.cli.arguments import THEIRS, complete_names, fail
from hfoptim.providers import PROVIDERS

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from hfoptim.engine import RuleOptimizer
    from hfoptim.registry.info import OptimInfo
    from hfoptim.registry.recommendation import Recommendation


def list_names(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern such as 'adam*'.")] = "",
    provider: Annotated[
        str | None, typer.Option(help="Those of another package (bitsandbytes, deepspeed, torch, ...), or 'all'.")
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="What an entry of an update depends on: element, tensor, matrix, ...")
    ] = None,
    family: Annotated[str | None, typer.Option(help="The family: names that share equations, such as lion.")] = None,
    year: Annotated[str | None, typer.Option(help="When its paper came out: 2025, or 2023- for since then.")] = None,
    max_state: Annotated[
        float | None, typer.Option(help="At most so many bytes of state per entry of a matrix.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All that the filters know, as JSON.")] = False,
    counts: Annotated[bool, typer.Option("--counts", help="How many names there are, by provider.")] = False,
) -> None:
    """List the optimizers."""
    from hfoptim.registry import facts
    from hfoptim.registry.lookup import get_optimizer_info, list_optimizers
    from hfoptim.registry.transformers_names import optimizer_names

    if counts:
        _show_counts()
        return
    try:
        providers = [None, *(each.name for each in PROVIDERS)] if provider == "all" else [provider]
        found = [
            get_optimizer_info(str(name)) for each in providers for name in list_optimizers(pattern, provider=each)
        ]
        first, last = _years(year)
    except ValueError as error:
        fail(str(error))
    if year is not None:
        found = [info for info in found if first <= (facts.year(info) or 0) <= last]
    if family is not None:
        found = [info for info in found if facts.family(info) == family.lower()]
    if scope is not None:
        found = [info for info in found if facts.scope(info) == scope.lower()]
    if max_state is not None:
        sizes = {info.name: facts.state_bytes(info) for info in found}
        found = [info for info in found if (size := sizes[info.name]) is not None and size <= max_state]
    if not found:
        fail(f"no optimizer matches {pattern!r} and the filters; `hfoptim list` shows all of them")
    if as_json:
        typer.echo(json.dumps([_entry(info) for info in found], indent=1))
        return
    grid = Table()
    grid.add_column("name", no_wrap=True)
    grid.add_column("")
    grid.add_column("description")
    for info in found:
        grid.add_row(info.name, "*" if info.name in optimizer_names() else "", info.description)
    Console().print(grid)
    if any(info.name in optimizer_names() for info in found):
        typer.echo(THEIRS.format("optim", "optimizer"))
    for info in found:
        for alias in optimizer_names().intersection(info.aliases):
            typer.echo(f"* optim={alias} means transformers' own, too; ours is optim={info.name}.")


def _show_counts() -> None:
    from hfoptim.registry.facts import counts

    installed = {each.name: each for each in PROVIDERS}
    for name, count in counts().items():
        missing = name in installed and not installed[name].installed
        typer.echo(f"{name}: {count}" + (f" (not installed: {installed[name].install})" if missing else ""))


def _years(text: str | None) -> tuple[int, int]:
    """The first and the last year that are meant."""
    first, dash, last = (text or "0-").partition("-")
    if not (first.isdigit() and (not last or last.isdigit())):
        raise ValueError(f"--year is 2025, 2023- or 2020-2022, got {text!r}")
    return int(first), int(last) if last else 9999 if dash else int(first)


def _entry(info: OptimInfo) -> dict[str, Any]:
    """An optimizer, for JSON."""
    from hfoptim.registry import facts

    return {
        "name": info.name,
        "aliases": list(info.aliases),
        "provider": info.provider,
        "family": facts.family(info),
        "scope": facts.scope(info),
        "year": facts.year(info),
        "state_bytes": facts.state_bytes(info),
        "needs": info.needs,
        "description": info.description,
        "source": info.source,
    }


def info(
    name: Annotated[str, typer.Argument(help="Name of an optimizer, in any case.", autocompletion=complete_names)],
) -> None:
    """Explain one optimizer: what it does, its options, its source, the state it keeps."""
    from hfoptim.registry.lookup import engine_class_of, get_optimizer_info

    try:
        found = get_optimizer_info(name)
        doc = inspect.getdoc(found.opt_class) or ""
    except (ImportError, ValueError) as error:
        fail(str(error))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for title, text in _facts(found):
        grid.add_row(title, text)
    console = Console(highlight=False)
    console.print(grid)
    engine_class = engine_class_of(found.opt_class)
    if engine_class is not None:
        console.print(_hyperparameters(engine_class, found.defaults))
        _, _, listed = (inspect.getdoc(engine_class) or "").partition("\n\nArgs:\n")
        doc = doc.replace("\n\nArgs:\n" + listed.partition("\n\n")[0], "")  # they are in the table
    typer.echo(f"\n{doc}")


def _facts(found: OptimInfo) -> list[tuple[str, str]]:
    cls = found.opt_class
    package = cls.__module__.rpartition(".")[0]  # torch.optim.lbfgs; ours are all at the top
    facts = [
        ("name", found.name),
        ("class", f"{'hfoptim' if package.startswith('hfoptim') else package}.{cls.__name__}"),
        ("description", found.description),
        ("source", found.source),
    ]
    if found.outside:
        facts.append(("package", f"{found.provider}; ours with the same equations is {found.algorithm}"))
    if found.aliases:
        facts.append(("aliases", ", ".join(found.aliases)))
    if found.defaults:
        facts.append(("by name", ", ".join(f"{key}={value!r}" for key, value in found.defaults.items())))
    facts.append(("options", "\n".join(_other_options(cls))))
    if found.needs is None:
        facts.append(("in a Trainer", _in_a_trainer(found)))
        if not found.outside:
            facts.append(("state", "\n".join(_state(found.name))))
    else:
        facts.append(("needs", f"{found.needs}; {'done by' if found.in_trainer else 'not for'} the Trainer"))
    facts += [(each.task if first else "", str(each)) for first, each in _by_task(found.name)]
    return facts


def _by_task(name: str) -> list[tuple[bool, Recommendation]]:
    """What others train an optimizer with, task by task; whether it is the first of its task, which is recommended."""
    from hfoptim.registry.recommendation import TASKS
    from hfoptim.registry.recommended import recommendations

    known = recommendations(name)
    of_task = [[each for each in known if each.task == task] for task in TASKS]
    return [(index == 0, each) for found in of_task for index, each in enumerate(found)]


def _hyperparameters(cls: type[RuleOptimizer], bound: Mapping[str, Any]) -> Table:
    """What a class declares; defaults are those of a name, which binds some."""
    table = Table(show_lines=True)
    table.add_column("name", no_wrap=True)
    for title in ("type", "default", "domain"):
        table.add_column(title, max_width=20, overflow="fold")
    table.add_column("meaning", overflow="fold")
    for name, each in cls.hypers.items():
        kind = each.annotation if isinstance(each.annotation, str) else inspect.formatannotation(each.annotation)
        default = repr(bound.get(name, each.default))
        table.add_row(*(escape(text) for text in (name, kind, default, each.domain, each.doc)))
    return table


def _in_a_trainer(found: OptimInfo) -> str:
    """What to write in TrainingArguments, and what not."""
    from hfoptim.registry.transformers_names import optimizer_names

    theirs = [f"optim={name!r}" for name in (found.name, *found.aliases) if name in optimizer_names()]
    name = f"hfoptim_{found.name}" if found.name in optimizer_names() else found.name
    return f"optim={name!r}" + (f"; {' and '.join(theirs)} means transformers' own optimizer" if theirs else "")


def _other_options(cls: type[Optimizer]) -> list[str]:
    """The constructor's arguments that no table of hyper-parameters has, with their defaults, and the engine's."""
    from hfoptim.engine import ENGINE_DEFAULTS
    from hfoptim.registry.lookup import engine_class_of

    engine_class = engine_class_of(cls)
    declared = engine_class.hypers if engine_class else {}
    others = [
        f"{name}={parameter.default!r}"
        for name, parameter in inspect.signature(cls).parameters.items()
        if name not in declared and name != "params" and parameter.kind is not parameter.VAR_KEYWORD
    ]
    return [*others, f"those below, and every optimizer's: {', '.join(ENGINE_DEFAULTS)}"] if engine_class else others


def _state(name: str) -> list[str]:
    """What a step leaves in the state of a matrix and of a vector: names, shapes, bytes per entry."""
    from hfoptim.registry.facts import states

    lines = []
    for kind, shape, size, tensors in states(name):
        texts = ", ".join(f"{key} {_shape(of)}" for key, of in tensors.items()) or "none"
        lines.append(f"{kind} {_shape(shape)}: {size:.2f} bytes per entry ({texts})")
    return lines


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "number"
