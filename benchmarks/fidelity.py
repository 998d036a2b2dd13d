"""How closely every optimizer follows the code it is tested against: docs/optimizers.md's table.

    python benchmarks/fidelity.py                      # measure all, and write the table
    python benchmarks/fidelity.py --only "ada*"        # measure some again
    python benchmarks/fidelity.py --table              # only write the table

All runs of all references of the test entries (tests/optimizers/cases): 50 steps, every layout of parameters that the
peer can do, a changing learning rate. A distance is the largest difference of a parameter after the last step, as a
share of how far it has come; the largest over parameters and runs.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import console
import measure
import torch
import typer
from report import ROOT, fill, table, where
from rich.progress import track

TESTS = ROOT / "tests"
os.environ.setdefault("KERAS_BACKEND", "torch")
sys.path[:0] = [str(TESTS), str(TESTS / "optimizers")]

import peers  # noqa: E402
from cases import ENTRIES, Entry, Reference  # noqa: E402
from following import STEPS, side_by_side  # noqa: E402

import hfoptim  # noqa: E402
from hfoptim.registry import OptimInfo, engine_class_of, group_defaults  # noqa: E402

FILE = measure.RESULTS / "fidelity.json"
DOCUMENT = ROOT / "docs" / "optimizers.md"
SIDE = 128

Row = dict[str, Any]


# -- measuring -------------------------------------------------------------------------------------------------------


def measured(entry: Entry) -> Iterator[Row]:
    """For each run of each reference of an entry: who, our options, in what precision, how far apart."""
    for reference in entry.references:
        for options in reference.runs:
            row = {
                "who": reference.who,
                "options": {key: plain(value) for key, value in options.items()},
                "dtype": str(reference.dtype).removeprefix("torch."),
            }
            try:
                yield {**row, "distance": distance(entry, reference, options)}
            except peers.MissingPeer:
                console.OUT.print(f"{entry.name}: {reference.who} is not installed")


def distance(entry: Entry, reference: Reference, options: Mapping[str, Any]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peers'
        return side_by_side(entry.cls, reference, dict(options), dict(options), STEPS).distance()


def plain(value: Any) -> Any:
    """A value as JSON keeps it."""
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


# -- the table -------------------------------------------------------------------------------------------------------


def state_of(info: OptimInfo) -> tuple[str, str]:
    """Bytes of state per entry of a float32 matrix, and what an entry's step may depend on."""
    cls = engine_class_of(info.opt_class)
    if cls is None or (info.needs is not None and not info.sparse_only):
        return "", "" if cls is None else scope_of(cls, info)
    param = torch.nn.Parameter(torch.ones(SIDE, SIDE))
    optimizer = hfoptim.create_optimizer_v2([("h.0.weight", param)], info.name)
    optimizer.zero_grad()
    (param * torch.linspace(0.5, 1.0, SIDE)).sum().backward()
    if info.sparse_only:
        param.grad = param.grad.to_sparse(1)
    loss = param.detach().sum()
    optimizer.step((lambda: loss) if getattr(cls, "needs_loss", False) else None)
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.dim())
    return f"{size / param.numel():.2f}".rstrip("0").rstrip("."), scope_of(cls, info)


def scope_of(cls: Any, info: OptimInfo) -> str:
    param = torch.nn.Parameter(torch.ones(SIDE, SIDE))
    optimizer = cls([("h.0.weight", param)], **info.defaults)
    return optimizer.rule_for(param, optimizer.param_groups[0]).scope.name.lower()


def source_of(info: OptimInfo) -> tuple[str, str]:
    """A link, and the year where the link has one."""
    arxiv = re.search(r"(\d{2})\d{2}\.\d{4,5}", info.source)
    address = re.search(r"https?://[^\s)]+", info.source)
    if arxiv:
        number = arxiv.group(0)
        return f"[{number}](https://arxiv.org/abs/{number})", f"20{arxiv.group(1)}"
    return (f"[link]({address.group(0)})" if address else info.source), ""


def followed(info: OptimInfo, rows: list[Row]) -> str:
    """The peers a name was followed against, each with the largest distance: in runs with the name's own options."""
    if "state_dtype" in info.defaults:  # the rows are of its class in float32
        return ""
    runs = [
        row for row in rows if {**row["options"], **{k: plain(v) for k, v in info.defaults.items()}} == row["options"]
    ]
    worst: dict[str, tuple[float, str]] = {}
    for row in runs or rows:
        who = row["who"].split(".")[0].replace("transcriptions", "transcription")
        worst[who] = max(worst.get(who, (0.0, "")), (row["distance"], row["dtype"]))
    return ", ".join(
        f"{who} {value:.0e}{' (float32)' if dtype == 'float32' else ''}" for who, (value, dtype) in worst.items()
    )


def options_of(info: OptimInfo) -> str:
    """A name's options with its defaults."""
    if engine_class_of(info.opt_class) is None:
        return ", ".join(inspect.signature(info.opt_class).parameters)
    given = {**group_defaults(info.name), **info.defaults}
    cls: Any = engine_class_of(info.opt_class)
    return ", ".join(f"{name}={given.get(name, each.default)!r}" for name, each in cls.hypers.items())


def rows_of(results: Mapping[str, list[Row]]) -> Iterator[list[str]]:
    of_class = {entry.cls: results.get(entry.name, []) for entry in ENTRIES}
    for name in hfoptim.list_optimizers():
        info = hfoptim.get_optimizer_info(name)
        paper, year = source_of(info)
        size, scope = state_of(info)
        found = [row for cls, rows in of_class.items() if issubclass(cls, info.opt_class) for row in rows]
        yield [f"`{name}`", info.description, paper, year, size, scope, followed(info, found), f"`{options_of(info)}`"]


COLUMNS = ("name", "what it is", "paper", "year", "state bytes", "scope", "followed, distance", "options")


def main(
    only: Annotated[list[str] | None, typer.Option(help="measure the entries whose names fit a pattern")] = None,
    only_table: Annotated[bool, typer.Option("--table", help="write the table from what was measured")] = False,
    output: Annotated[Path, typer.Option(help="the JSON file")] = FILE,
    document: Annotated[Path, typer.Option(help="the file with the markers")] = DOCUMENT,
) -> None:
    """Measure, and write docs/optimizers.md's table."""
    known = json.loads(output.read_text()) if output.exists() else {}
    results: dict[str, list[Row]] = known.get("rows", {})
    if not only_table:
        torch.set_num_threads(1)
        chosen = [entry for entry in ENTRIES if not only or any(fnmatch(entry.name, pattern) for pattern in only)]
        for entry in track(chosen, "entries", console=console.ERR):
            results[entry.name] = list(measured(entry))
            kept = {each.name: results[each.name] for each in ENTRIES if each.name in results}
            known = {**measure.about(benchmark="fidelity", steps=STEPS), "rows": kept}
            output.write_text(json.dumps(known, indent=1) + "\n")  # at once: it takes a while
    names = hfoptim.list_optimizers()
    body = f"{len(names)} names. {where(known)}\n\n{table(COLUMNS, rows_of(results))}"
    document.write_text(fill(document.read_text(), "optimizers", body))


if __name__ == "__main__":
    typer.run(main)
