"""Every name over every way of training on several processes: equal to one process, or refused, and with which words.

    python benchmarks/distributed_table.py                                  # all columns, all names
    python benchmarks/distributed_table.py --column fsdp1 --column zero1    # these, added to the results
    python benchmarks/distributed_table.py --column ddp2 --name adamw --output /tmp/table.json
    python benchmarks/distributed_table.py --column fsdp2_2 --wrong         # what was neither equal nor refused, again

Processes are started once for a column (distributed_column.py) and go through all names. A cell is the distance of the
weights after 6 steps from those of one process, as a share of the largest movement, or what the refusal says. With
`--name` or `--wrong` other cells of a column stay as they are.
DeepSpeed's columns need an interpreter that has it: `--deepspeed-python .venv-providers/bin/python`. The results and
the table in docs/distributed.md hold the columns that were measured, each with its date.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import measure
import typer

import hfoptim

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "distributed.json"
DOCS = ROOT / "docs" / "distributed.md"
BEGIN, END = "<!-- table: benchmarks/distributed_table.py -->", "<!-- end of table -->"

# Column -> (what it is called, [(what to run, on how many processes)]).
COLUMNS: dict[str, tuple[str, list[tuple[str, int]]]] = {
    "ddp2": ("DDP 2", [("step", 2)]),
    "fsdp1": ("FSDP1", [("step", 2)]),
    "fsdp2_2": ("FSDP2 2", [("step", 2)]),
    "fsdp2_4": ("FSDP2 4 uneven", [("step", 4)]),
    "hsdp": ("HSDP", [("step", 4)]),
    "tp_fsdp2": ("TP x FSDP2", [("step", 4)]),
    "zero1": ("ZeRO-1", [("step", 2)]),
    "zero2": ("ZeRO-2", [("step", 2)]),
    "zero3": ("ZeRO-3", [("step", 2)]),
    "reshard_2_1": ("2 -> 1", [("save", 2), ("resume", 1)]),
    "reshard_1_2": ("1 -> 2", [("save", 1), ("resume", 2)]),
    "reshard_4_2": ("4 -> 2", [("save", 4), ("resume", 2)]),
}
# How far a run may be from that of one process: in double precision, and in DeepSpeed's float32, in which an entry may
# be off by two roundings besides: sums over tensors are added up in another order.
TOLERANCE, TOLERANCE_OF_ZERO, ROUNDINGS = 1e-9, 1e-6, 2.0

# What torch and DeepSpeed cannot do, whatever optimizer of that kind it is, with words of the sentence that they say.
THEIRS: dict[str, tuple[str, ...]] = {
    # torch's own: it makes one vector of all gradients, and its products of vectors are those of one rank.
    "lbfgs": (
        "positional argument: 'closure'",
        "'NoneType' object is not callable",
        "unevenly sharded",
        "is invalid for input of size",
    ),
    # Sparse gradients, which nothing shards.
    "sparse_adam": ("sparse", "Sparse"),
    # A graph of gradients, which DDP's buckets break.
    "adahessian": ("a leaf Variable that requires grad",),
    "sophiah": ("a leaf Variable that requires grad",),
}

Cell = dict[str, Any]

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)


def launch(
    column: str, kind: str, ranks: int, names: list[str], python: str, folder: Path, limit: float
) -> dict[str, Cell]:
    """Run one column on its processes, and give what they found.

    Raises:
        RuntimeError: a process failed, or took longer than `limit` seconds.
    """
    job = folder / f"{kind}.json"
    about = {"column": column, "kind": kind, "names": names, "folder": str(folder / "checkpoints")}
    job.write_text(
        json.dumps({**about, "store": str(folder / f"{kind}.store"), "output": str(folder / f"{kind}.found")})
    )
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    running, outputs = [], [folder / f"{kind}.{rank}.txt" for rank in range(ranks)]
    for rank, output in enumerate(outputs):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MASTER_PORT": "29511", **own}
        with output.open("w") as said:
            line = [python, str(ROOT / "benchmarks" / "distributed_column.py"), str(job), str(rank), str(ranks)]
            running.append(subprocess.Popen(line, stdout=said, stderr=subprocess.STDOUT, env=environment))
    try:
        codes: list[int | None] = [process.wait(limit) for process in running]
    except subprocess.TimeoutExpired:
        codes = [None]
    finally:
        for process in running:
            process.kill()
    if codes != [0] * ranks:
        told = "\n".join(output.read_text()[-2000:] for output in outputs)
        raise RuntimeError(f"{column}: {kind} on {ranks} processes ended with {codes}\n{told}")
    found: dict[str, Cell] = json.loads((folder / f"{kind}.found").read_text())
    return found


def measured(column: str, names: list[str], python: str, limit: float) -> dict[str, Cell]:
    """The cells of one column; where saving fails, that is the cell."""
    cells: dict[str, Cell] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, ranks in COLUMNS[column][1]:
            left = [name for name in names if "saved" in cells.get(name, {"saved": True})]
            cells |= launch(column, kind, ranks, left, python, Path(folder), limit)
    return cells


def verdict(name: str, column: str, cell: Cell) -> str:
    """`equal`, `refused`, `theirs` (torch or DeepSpeed cannot), `differs` or `error`."""
    if "distance" in cell:
        single = column.startswith("zero")
        near = cell["distance"] <= (TOLERANCE_OF_ZERO if single else TOLERANCE)
        return "equal" if near or (single and cell.get("roundings", math.inf) <= ROUNDINGS) else "differs"
    if cell["where"] == "hfoptim":
        return "refused"
    return "theirs" if any(words in cell["said"] for words in THEIRS.get(name, ())) else "error"


WORDS = {"refused": "no", "theirs": "not by torch", "error": "**error**"}

# -- the table --------------------------------------------------------------------------------------------------------


def sentence(cell: Cell) -> str:
    """What a refusal or an error says, in one line, without the name of the optimizer and what is the same in all."""
    said = re.sub(r"\s+", " ", cell["said"]).partition(", where that would be something else")[0]
    first, _, rest = said.partition(" ")
    plain = f"... {rest}" if re.fullmatch(r"[A-Z]\w+", first) else said
    return plain[:160].replace("|", "\\|")


def table(columns: dict[str, dict[str, Cell]], about: dict[str, Any]) -> str:
    """The table in Markdown, with the sentences below it."""
    present = [column for column in COLUMNS if column in columns]
    names = sorted({name for column in present for name in columns[column]})
    numbers: dict[str, int] = {}
    lines = ["| name | " + " | ".join(COLUMNS[column][0] for column in present) + " |"]
    lines.append("| --- " * (len(present) + 1) + "|")
    for name in names:
        row = []
        for column in present:
            cell = columns[column].get(name)
            if cell is None:
                row.append("not measured")
            elif "distance" in cell:
                mark = "" if verdict(name, column, cell) == "equal" else "**differs** "
                row.append(f"{mark}{cell['distance']:.0e}" if cell["distance"] else "0")
            else:
                number = numbers.setdefault(sentence(cell), len(numbers) + 1)
                row.append(f"{WORDS[verdict(name, column, cell)]} ({number})")
        lines.append(f"| `{name}` | " + " | ".join(row) + " |")
    dates = ", ".join(f"{COLUMNS[column][0]} {about[column]['date'][:10]}" for column in present)
    missing = ", ".join(COLUMNS[column][0] for column in COLUMNS if column not in present)
    lines += ["", f"Measured: {dates}." + (f" Not measured yet: {missing}." if missing else ""), ""]
    lines += [f"{number}. {said}" for said, number in numbers.items()]
    return "\n".join(lines)


def into_docs(text: str, made: str) -> str:
    """The page with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


@app.command()
def main(
    column: Annotated[list[str] | None, typer.Option(help="which columns; all without")] = None,
    name: Annotated[list[str] | None, typer.Option(help="which names; all without")] = None,
    deepspeed_python: Annotated[str, typer.Option(help="an interpreter with DeepSpeed")] = sys.executable,
    wrong: Annotated[bool, typer.Option("--wrong", help="only names without a cell that is equal or refused")] = False,
    output: Annotated[
        Path, typer.Option(help="the results; docs follow from them where they are the project's")
    ] = RESULTS,
    limit: Annotated[float, typer.Option(help="seconds for the processes of a column")] = 3600.0,
) -> None:
    """Measure columns, and add them to the results."""
    before = json.loads(output.read_text()) if output.exists() else {}
    columns, about = before.get("columns", {}), before.get("about", {})
    for each in column or COLUMNS:
        if each not in COLUMNS:
            raise typer.BadParameter(f"{each!r} is none of {', '.join(COLUMNS)}")
        python = deepspeed_python if each.startswith("zero") else sys.executable
        kept = columns.get(each, {}) if name or wrong else {}
        chosen = [
            own
            for own in name or hfoptim.list_optimizers()
            if not wrong or own not in kept or verdict(own, each, kept[own]) in ("differs", "error")
        ]
        columns[each] = dict(sorted({**kept, **(measured(each, chosen, python, limit) if chosen else {})}.items()))
        about[each] = measure.about()
        verdicts = [verdict(own, each, cell) for own, cell in columns[each].items()]
        print(each, {kind: verdicts.count(kind) for kind in sorted(set(verdicts))}, flush=True)
        measure.write(output, "distributed", {"about": about, "columns": columns})
    if output == RESULTS:
        DOCS.write_text(into_docs(DOCS.read_text(), table(columns, about)))


if __name__ == "__main__":
    app()
