"""The command `hfoptim`: compare optimizers on a language model, list them, explain one; list and draw schedules."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hfoptim.providers import PROVIDERS

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from hfoptim.engine import RuleOptimizer
    from hfoptim.registry.info import OptimInfo
    from hfoptim.registry.recommendation import Recommendation

USAGE_ERROR, INTERRUPTED = 2, 130
# Under a list with names that transformers has, too.
_THEIRS = "* In TrainingArguments {0}=NAME means transformers' own {1}; ours is {0}=hfoptim_NAME."

app = typer.Typer(
    name="hfoptim",
    help="Optimizers and learning-rate schedules for HuggingFace Transformers, each chosen by name.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


schedules_app = typer.Typer(help="List the learning-rate schedules, or draw them.", invoke_without_command=True)
app.add_typer(schedules_app, name="schedules")


def main() -> None:
    """Entry point of the console script."""
    app()


def _version(asked: bool) -> None:
    if asked:
        import hfoptim

        typer.echo(f"hfoptim {hfoptim.__version__}")
        raise typer.Exit()


def _names(incomplete: str) -> list[str]:
    """The names that a shell completes, those of other packages too."""
    from hfoptim.registry.catalogue import known_optimizers

    known = known_optimizers()
    return [name for name in (*known.names(), *known.names(outside=True)) if name.startswith(incomplete.lower())]


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def compare(
    optim: Annotated[
        list[str] | None,
        typer.Option(help="Optimizer, in any case; repeatable or comma-separated. (default: adamw,adafactor,lion,sgd)"),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Hub dataset, or a local .txt, .json, .jsonl, .csv, .parquet file or folder. "
            "(default: Python's language reference)"
        ),
    ] = None,
    dataset_config: Annotated[str | None, typer.Option(help="Configuration of a hub dataset.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column with the text, if in doubt.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Hub model or local folder, pretrained. (default: a small new GPT-2)")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Take only the architecture of --model, with fresh weights.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps per run. (default: 300)")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per step. (default: 8)")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens per sequence. (default: 64)")] = None,
    lr_grid: Annotated[
        list[str] | None,
        typer.Option(
            help="Learning rates, for all optimizers (1e-3,3e-3) or for one (lion=1e-4,3e-4); repeatable. "
            "(default: three per optimizer)"
        ),
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="Learning-rate schedule. (default: cosine)")] = None,
    seed: Annotated[
        list[str] | None,
        typer.Option(help="Seed of weights and data order; repeatable or comma-separated. (default: 0)"),
    ] = None,
    tune_first: Annotated[
        bool,
        typer.Option(
            "--tune-first", help="Try all rates with the first seed; run the other seeds at the best rate alone."
        ),
    ] = False,
    checkpoint_steps: Annotated[
        int | None, typer.Option(help="Steps between checkpoints of a run, 0 for none. (default: a quarter of it)")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="A new folder for the results.")] = Path("hfoptim-compare"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the comparison in --output-dir, with its options.")
    ] = False,
) -> None:
    """Train a model with several optimizers, each over its learning rates, and compare them fairly."""
    from hfoptim.compare import CompareConfig, CompareError, resumed_config
    from hfoptim.compare import compare as run_comparison

    options: dict[str, Any] = {
        "optimizers": optim or None,
        "lr_grid": lr_grid or None,
        "dataset": dataset,
        "dataset_config": dataset_config,
        "text_column": text_column,
        "model": model,
        "from_scratch": from_scratch or None,
        "steps": steps,
        "batch_size": batch_size,
        "seq_len": seq_len,
        "schedule": schedule,
        "seeds": seed or None,
        "tune_first": tune_first or None,
        "checkpoint_steps": checkpoint_steps,
    }
    try:
        config = resumed_config(output_dir, options) if resume else CompareConfig.from_options(**options)
        results = run_comparison(config, output_dir, resume=resume)
    except CompareError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        begun = (output_dir / "results.json").exists()
        hint = f"; go on with: hfoptim compare --resume --output-dir {output_dir}" if begun else ""
        typer.echo(f"stopped{hint}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if not results.complete:
        raise typer.Exit(1)


@app.command("list")
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
        _fail(str(error))
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
        _fail(f"no optimizer matches {pattern!r} and the filters; `hfoptim list` shows all of them")
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
        typer.echo(_THEIRS.format("optim", "optimizer"))
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


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="Name of an optimizer, in any case.", autocompletion=_names)],
) -> None:
    """Explain one optimizer: what it does, its options, its source, the state it keeps."""
    from hfoptim.registry.lookup import engine_class_of, get_optimizer_info

    try:
        found = get_optimizer_info(name)
        doc = inspect.getdoc(found.opt_class) or ""
    except (ImportError, ValueError) as error:
        _fail(str(error))
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


@app.command()
def kernels(
    name: Annotated[str, typer.Argument(help="Name of an optimizer, in any case.", autocompletion=_names)],
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
        given = _given(options)
        optimizer = hfoptim.create_optimizer_v2([("weight", param)], name, **{**given, "fused": True})
        param.grad = torch.ones_like(param)
        step(optimizer)
    except (ValueError, TypeError, RuntimeError) as error:
        _fail(str(error))
    for title, text in show.known().items():
        typer.echo(f"{title}\n\n{text}")


@app.command()
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

    given = _given(options)
    try:
        found = describe_param_groups(empty_model(model), optim, **given)
    except (ValueError, TypeError, CompareError) as error:
        _fail(str(error))
    rows = [TITLES, *found.rows()]
    used = [any(row[column] for row in rows[1:]) for column in range(len(TITLES))]
    grid = Table()
    for title, shown in zip(TITLES, used, strict=True):
        if shown:
            grid.add_column(title, overflow="fold", justify="right" if title in ("times", "lr", "group") else "left")
    for row in rows[1:]:
        grid.add_row(*(escape(cell) for cell, shown in zip(row, used, strict=True) if shown))
    Console(highlight=False).print(grid)


@app.command()
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

    given = _given(options)
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        _fail(f"--dtype {dtype} is no dtype of parameters; give float32, bfloat16 or float16")
    try:
        given = {**({} if state_dtype == "float32" else {"state_dtype": state_dtype}), **given}
        made = empty_model(model).to(kind)
        found = predict_memory(made, optim, ranks=ranks, strategy=strategy, device=device, **given)
    except (ValueError, TypeError, CompareError) as error:
        _fail(str(error))
    grid = Table("", "", "bytes per trained parameter")
    for column in grid.columns[1:]:
        column.justify = "right"
    for row in found.rows():
        grid.add_row(*(escape(cell) for cell in row), end_section=row[0] == "the step itself")
    Console(highlight=False).print(grid)


def _given(options: Iterable[str] | None) -> dict[str, Any]:
    """Arguments such as `weight_decay=0.1` as options."""
    return {key: _value(text) for key, _, text in (option.partition("=") for option in options or ())}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


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


@schedules_app.callback()
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
    typer.echo(_THEIRS.format("lr_scheduler_type", "schedule"))


@schedules_app.command("plot")
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
        _fail("give names of schedules or --all; `hfoptim schedules` shows the names")
    if all_of_them and kwargs is not None:
        _fail("--kwargs is for schedules given by name, --all has examples of its own")
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
        _fail(str(error))
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


def _fail(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(USAGE_ERROR)


if __name__ == "__main__":
    main()
