"""docs/performance.md's tables and pictures, from the results in benchmarks/results.

    python benchmarks/report.py

Each table lies between a pair of markers, `<!-- begin: name -->` and `<!-- end: name -->`; what is outside stays.
A benchmark without results leaves its tables as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import console
import measure
import typer

ROOT = Path(__file__).resolve().parent.parent
OURS = "hfoptim"
BASE = "torch AdamW fused"
CODED = ("8bit", "4bit")
_KEPT = {True: "yes", False: "**no**", None: ""}
# Two colours and greys, told apart by everyone.
_BLUE, _ORANGE, _GREY, _DARK = "#2a6fbb", "#d9822b", "#b8bec6", "#3c4148"

Result = dict[str, Any]
Rows = Iterable[Sequence[Any]]


def table(columns: Sequence[str], rows: Rows) -> str:
    """A Markdown table; columns of numbers stand to the right."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    right = [all(_is_number(row[i]) for row in cells if i < len(row)) for i in range(len(columns))]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---:' if each else '---' for each in right)} |"]
    lines += [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    """Whether a cell is empty or a number, with its unit if it has one."""
    return re.fullmatch(r"\W*|\**-?[\d.,]+(e[+-]\d+)?\**( [%M])?", cell) is not None


def fill(text: str, name: str, body: str) -> str:
    """Put a body between the markers of a name.

    Raises:
        ValueError: the text has no such markers.
    """
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no markers {begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n\n{body}\n\n{end}", text)


def number(value: float | None, places: int = 2) -> str:
    return measure.digits(value, places) or ""


def percent(value: float | None, places: int = 2) -> str:
    return "" if value is None else f"{100 * value:.{places}f} %"


def where(about: Result) -> str:
    """A line about the machine and the versions."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['machine']}, {about['threads']} threads, Python {about['python']}, {about['date'][:10]}. {versions}."
    )


# -- time of a step --------------------------------------------------------------------------------------------------


def own_rows(result: Result, dtype: str) -> list[tuple[str, Result]]:
    """(name and form, row) of ours that were timed."""
    families = result["dtypes"].get(dtype, {})
    return [
        (row["candidate"].removeprefix(f"{OURS} "), row)
        for family in families.values()
        for row in family["rows"]
        if row["package"] == OURS
    ]


def step_time_tables(result: Result) -> dict[str, str]:
    """Ours against the floor, and the peers against ours, for each dtype."""
    floors, peers = [f"{where(result['about'])}\n"], []
    for dtype in result["dtypes"]:
        columns = ("optimizer", "scope", "bytes per parameter", "ms", f"{BASE}, ms", "ratio", "of the fastest")
        rows = [
            (
                *(name, row["scope"], number(row["bytes_moved"], 1), number(row["median_ms"], 1)),
                *(number(row["base_median_ms"], 1), number(row["ratio"]), number(row["ratio_of_fastest"])),
                *(number(row["of_floor"]), row["limit"], _KEPT[row["kept"]]),
            )
            for name, row in own_rows(result, dtype)
        ]
        floors.append(f"**{dtype}**\n\n{table((*columns, 'of its floor', 'limit', 'kept'), rows)}\n")
        peers.append(f"**{dtype}**\n\n{_peers(result['dtypes'][dtype])}\n")
        busy = [name for name, family in result["dtypes"][dtype].items() if family["busy"]]
        if busy:
            floors.append(f"The machine was busy when these were timed: {', '.join(busy)}.\n")
    left_out = "; ".join(f"{name}: {why}" for name, why in result["skipped"].items())
    floors.append(f"Not timed: {left_out}.")
    return {
        "step-time": "\n".join(floors),
        "peers": "\n".join(peers),
        **({"adapters": _adapters(result["adapters"])} if "adapters" in result else {}),
    }


def _adapters(part: Result) -> str:
    """Adapters and small models against torch's fused AdamW."""
    columns = ("model", "M parameters", "optimizer", "ms", f"{BASE}, ms", "ratio", "of the fastest", "limit", "kept")
    rows = [
        (
            *(row["model"], number(row["numel"] / 1e6), row["optimizer"], number(row["median_ms"])),
            *(number(row["base_median_ms"]), number(row["ratio"]), number(row["ratio_of_fastest"])),
            *(row["limit"], _KEPT[row["kept"]]),
        )
        for row in part["rows"]
    ]
    busy = [f"{row['model']}, {row['optimizer']}" for row in part["rows"] if row["busy"]]
    text = f"{where(part['about'])}\n\n{table(columns, rows)}"
    return f"{text}\n\nThe machine was busy when these were timed: {'; '.join(busy)}." if busy else text


def _peers(families: dict[str, Result]) -> str:
    """The best time of each package over ours, by optimizer and form."""
    found: dict[str, dict[str, float]] = {}
    skipped = []
    for name, family in families.items():
        medians = {row["candidate"]: row["median_ms"] for row in family["rows"]}
        for row in family["rows"]:
            if row.get("ours") is None:
                continue
            coded = row["form"] if row["form"] in CODED else ""
            ratios = found.setdefault(f"{name} {coded}".strip(), {})
            ratio = row["median_ms"] / medians[row["ours"]]
            ratios[row["package"]] = min(ratio, ratios.get(row["package"], ratio))
        skipped += [f"{label} ({why})" for label, why in family["skipped"].items()]
    packages = sorted({package for ratios in found.values() for package in ratios}, key=str.lower)
    rows = [
        (name, *(_against(ratios.get(package)) for package in packages)) for name, ratios in found.items() if ratios
    ]
    text = table(("optimizer", *packages), rows)
    return f"{text}\n\nNot timed: {'; '.join(skipped)}." if skipped else text


def _against(ratio: float | None) -> str:
    return "" if ratio is None else number(ratio) if ratio > 1.0 else f"**{number(ratio)}**"


def draw_step_time(result: Result, figure: Any) -> None:
    """Bars of the ratio to torch's AdamW, with a mark where the limit is."""
    dtypes = list(result["dtypes"])
    adapters = result.get("adapters", {"rows": []})["rows"][::-1]
    *panels, last = figure.subplots(1, len(dtypes) + 1, squeeze=False)[0]
    last.barh(
        [f"{row['model']}\n{row['optimizer']}" for row in adapters],
        [row["ratio"] for row in adapters],
        color=[_BLUE if row["kept"] else _ORANGE for row in adapters],
        height=0.7,
    )
    for place, row in enumerate(adapters):
        last.plot([row["limit"]] * 2, [place - 0.45, place + 0.45], color=_DARK, linewidth=1.5)
    last.axvline(1.0, color=_GREY, linewidth=1, zorder=0)
    last.set(title="float32: adapters, small models", xlabel="of torch's fused AdamW (mark: limit)")
    for axes, dtype in zip(panels, dtypes, strict=True):
        rows = [(name, row) for name, row in own_rows(result, dtype) if row["of_floor"] is not None]
        rows = [(name, row) for name, row in rows if row["form"] not in CODED][::-1]
        colors = [_ORANGE if row["kept"] is False else _BLUE for _, row in rows]
        axes.barh([name for name, _ in rows], [row["ratio"] for _, row in rows], color=colors, height=0.7)
        for place, (_, row) in enumerate(rows):
            if row["limit"] is not None:
                limit = row["limit"] * row["ratio"] / row["of_floor"]
                axes.plot([limit, limit], [place - 0.45, place + 0.45], color=_DARK, linewidth=1.5)
        axes.axvline(1.0, color=_GREY, linewidth=1, zorder=0)
        axes.set(title=f"{dtype}: time of a step", xlabel="of torch's fused AdamW (mark: limit)")
    figure.set_size_inches(13, 1.2 + 0.19 * max((len(axes.patches) for axes in panels), default=1))


# -- every optimizer against its own floor ----------------------------------------------------------------------------


def floors_tables(result: Result) -> dict[str, str]:
    """All optimizers of the registry, and those above their limit by name."""
    columns = ("optimizer", "scope", "bytes per parameter", "ms", "its floor, ms", "of its floor", "of the fastest")
    timed = [row for row in result["rows"] if "error" not in row]
    rows = [
        (
            *(row["optimizer"], row["scope"], number(row["bytes_moved"], 1), number(row["median_ms"], 1)),
            *(number(row["floor_ms"], 1), number(row["of_floor"]), number(row["of_floor_fastest"])),
            *(row["limit"], _KEPT[row["kept"]]),
        )
        for row in timed
    ]
    above = [f"{row['optimizer']} ({number(row['of_floor'])})" for row in timed if not row["kept"]]
    left_out = [f"{row['optimizer']} ({row['error']})" for row in result["rows"] if "error" in row]
    size = f"{timed[0]['numel'] / 1e6:.1f} M float32 parameters in {timed[0]['tensors']} tensors. "
    summed = f"{len(timed) - len(above)} of {len(timed)} within their limit. Above it: {', '.join(above) or 'none'}. "
    summed += f"Not timed: {', '.join(left_out) or 'none'}."
    return {"floors": f"{size}{where(result['about'])}\n\n{summed}\n\n{table((*columns, 'limit', 'kept'), rows)}"}


# -- memory ----------------------------------------------------------------------------------------------------------


def memory_tables(result: Result) -> dict[str, str]:
    """Ours by optimizer and form, and the peers'."""
    measured = [row for row in result["rows"] if "error" not in row]
    ours: dict[tuple[str, str], dict[str, Result]] = {}
    for row in measured:
        if row["runner"] is not None:
            ours.setdefault((row["name"], row["form"]), {})[row["runner"]] = row
    runners = list(dict.fromkeys(runner for found in ours.values() for runner in found))
    rows = []
    for (name, form), found in ours.items():
        one = next(iter(found.values()))
        peaks = [number(found[r]["peak_bytes"] / 1e6, 0) if r in found else "" for r in runners]
        rows.append((name, form, number(one["state_bytes"], 3), one["limit"], _KEPT[one["kept"]], *peaks))
    columns = ("optimizer", "state", "bytes per parameter", "limit", "kept", *(f"peak, {r}, MB" for r in runners))
    theirs = [
        (row["name"], row["candidate"], number(row["state_bytes"], 3), number(row["peak_bytes"] / 1e6, 0))
        for row in measured
        if row["runner"] is None
    ]
    missed = [f"{row['candidate']} ({row['error']})" for row in result["rows"] if "error" in row]
    peers = table(("optimizer", "peer", "bytes per parameter", "peak, MB"), theirs)
    if missed:
        peers += f"\n\nNot measured: {'; '.join(missed)}."
    size = f"{result['about']['numel'] / 1e6:.1f} M {result['rows'][0]['dtype']} parameters. "
    return {"memory": f"{size}{where(result['about'])}\n\n{table(columns, rows)}", "memory-peers": peers}


def draw_memory(result: Result, figure: Any) -> None:
    """Bars of the bytes of state per parameter: ours, and the peers of the same optimizers."""
    best: dict[str, tuple[float, bool]] = {}
    for row in result["rows"]:
        if "error" in row or not (row["runner"] is not None or row["form"] in CODED):
            continue
        name = row["candidate"].removeprefix(f"{OURS} ")
        for runner in ("foreach", "loop"):
            name = name.removesuffix(f" {runner}")
        best[name] = (row["state_bytes"], row["runner"] is not None)
    rows = sorted(best.items(), key=lambda item: item[1][0])
    axes = figure.subplots()
    axes.barh(
        [name for name, _ in rows],
        [value for _, (value, _) in rows],
        color=[_BLUE if mine else _GREY for _, (_, mine) in rows],
        height=0.7,
    )
    axes.set(title="State (grey: other packages)", xlabel="bytes per parameter")
    figure.set_size_inches(6.5, 1.0 + 0.17 * len(rows))


# -- quality ---------------------------------------------------------------------------------------------------------


def quality_tables(result: Result) -> dict[str, str]:
    """Final losses, Kahan against optimi, coded state against the others'."""
    config = result["config"]
    runs = table(
        ("optimizer", "kept in", "eval loss", "against float32", "state, bytes per parameter", "seeds", "within 0.5 %"),
        [
            (
                *(row["optimizer"], row["variant"], number(row["eval_loss"], 4), percent(row["off"])),
                *(number(row["state_bytes"]), f"{row['seeds']}", _KEPT[row["kept"]]),
            )
            for row in result["summary"]
        ],
    )
    head = f"{result['model']['name']} of {result['model']['parameters']:,} parameters, {config['steps']} steps of "
    head += f"{config['batch_size']} x {config['seq_len']} tokens. "
    for more in result.get("added", []):
        runs += f"\n\n{', '.join(more['optimizers'])}: {where(more['about'])}"
    kahan = table(
        ("optimizer", "weights", "error / movement", "equal to optimi's", "largest difference to optimi's"),
        [
            (
                *(row["optimizer"], row["label"], percent(row["error"]), percent(row.get("equal"), 1)),
                f"{row['largest_difference']:.1e}" if "equal" in row else "",
            )
            for row in result["kahan"]
        ],
    )
    keys = list(dict.fromkeys(key for row in result["codes"] for key in row["states"]))
    codes = table(
        ("optimizer", "state", "weights", *(f"`{key}`" for key in keys)),
        [
            (
                *(row["optimizer"], row["label"], percent(row["weights"])),
                *(percent(row["states"].get(key)) for key in keys),
            )
            for row in result["codes"]
        ],
    )
    steps = f"After {result['gradient_steps']} steps:"
    return {
        "quality": f"{head}{where(result['about'])}\n\n{runs}",
        "kahan": f"{steps}\n\n{kahan}",
        "codes": f"{steps}\n\n{codes}",
    }


def draw_quality(result: Result, figure: Any) -> None:
    """Bars of the difference to float32, by optimizer."""
    names = list(dict.fromkeys(row["optimizer"] for row in result["summary"]))
    panels = figure.subplots(1, len(names), sharey=True, sharex=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        rows = [row for row in result["summary"] if row["optimizer"] == name and row["off"] is not None][::-1]
        rows = [row for row in rows if row["variant"] != "float32"]
        colors = [_ORANGE if row["kept"] is False else _BLUE if row["kept"] else _GREY for row in rows]
        axes.barh([row["variant"] for row in rows], [100 * row["off"] for row in rows], color=colors, height=0.7)
        axes.axvspan(-0.5, 0.5, color=_GREY, alpha=0.25, linewidth=0, zorder=0)
        axes.axvline(0.0, color=_DARK, linewidth=0.8)
        axes.set(title=name, xlabel="loss, % above float32")
    figure.set_size_inches(10, 2.6)


# -- scaling ---------------------------------------------------------------------------------------------------------


def scaling_tables(result: Result) -> dict[str, str]:
    """Growing models, many tensors, first steps."""
    parts = [f"{where(result['about'])}\n"]
    for part, what, cell in (
        ("sizes", "parameters", lambda row: f"{row['numel'] / 1e6:,.0f} M"),
        ("tensors", "tensors", lambda row: f"{row['tensors']}"),
    ):
        parts.append(_grid(result[part], what, cell) + "\n")
    rows: list[Sequence[str]] = []
    for row in result["first"]:
        if "error" in row:
            rows.append((row["optimizer"], row["error"]))
            continue
        cells: list[str] = [row["optimizer"]]
        for state in ("cold", "warm"):
            found = row[state]
            with_imports = number(found["first_step_s"] + found["import_s"])
            cells += [number(found["first_step_s"]), with_imports, _KEPT[row[f"{state}_kept"]]]
        rows.append(tuple(cells))
    columns = [f"{state}{what}" for state in ("cold", "warm") for what in (", s", " with imports, s", " kept")]
    return {"scaling": "\n".join(parts), "first-step": table(("optimizer", *columns), rows)}


def _grid(rows: list[Result], what: str, cell: Callable[[Result], str]) -> str:
    """A line for each model, with ms and the ratio for each optimizer."""
    names = list(dict.fromkeys(row["optimizer"] for row in rows))
    lines: dict[str, dict[str, Result]] = {}
    for row in rows:
        lines.setdefault(cell(row), {})[row["optimizer"]] = row
    columns = [text for name in names for text in (f"{name}, ms", "ratio")]
    body = []
    for label, found in lines.items():
        cells = [label]
        for name in names:
            row = found.get(name, {})
            cells += [number(row.get("median_ms")) or "no memory", number(row.get("ratio"))]
        body.append(tuple(cells))
    return table((what, *columns), body)


def draw_scaling(result: Result, figure: Any) -> None:
    """Lines of the ratio to torch's AdamW, over parameters and over tensors."""
    panels = figure.subplots(1, 2, sharey=True)
    colors = (_BLUE, _ORANGE, _DARK, "#5a9e6f", "#8a6bbf")
    for axes, part, key, label in (
        (panels[0], "sizes", "numel", "parameters in 148 tensors"),
        (panels[1], "tensors", "tensors", "tensors"),
    ):
        for color, name in zip(colors, dict.fromkeys(row["optimizer"] for row in result[part]), strict=False):
            rows = [row for row in result[part] if row["optimizer"] == name and "ratio" in row]
            axes.plot([r[key] for r in rows], [r["ratio"] for r in rows], marker="o", color=color, label=name)
        axes.axhline(1.0, color=_GREY, linewidth=1, zorder=0)
        axes.set(xscale="log", xlabel=label)
        axes.grid(alpha=0.2)
    panels[0].set_ylabel("time of a step, of torch's fused AdamW")
    panels[0].legend(frameon=False)
    panels[0].set_ylim(bottom=0.0)
    figure.set_size_inches(8, 3.2)


# -- GPU -------------------------------------------------------------------------------------------------------------


def gpu_tables(result: Result) -> dict[str, str]:
    """Right, fast, in few launches; what there was no time for."""
    parts = result["parts"]
    lines = [f"{result['about']['device']}. {where(result['about'])}"]
    for row in parts.get("machine", {"rows": []})["rows"]:
        if "bytes_per_s" in row:
            lines.append(f"Copies: {row['bytes_per_s'] / 1e9:,.0f} GB/s, read and written.")
        elif "host_us" in row:
            lines.append(
                f"A launch: {number(row['device_us'])} us on the device, {number(row['host_us'])} us on the host."
            )
    right = parts.get("right", {"rows": []})["rows"]
    wrong = [f"{row['optimizer']} {row['form']} ({row.get('error', number(row.get('off'), 6))})" for row in right]
    wrong = [said for said, row in zip(wrong, right, strict=True) if not row.get("kept")]
    lines.append(f"{len(right) - len(wrong)} of {len(right)} checks against the CPU kept.")
    if wrong:
        lines.append(f"Not kept: {'; '.join(wrong)}.")
    columns = ("optimizer", "kept in", "parameters", "tensors", "ms", "of the copy rate", "host, ms", "launches", "by")
    others = ("others: ms, host ms, launches",)
    for part in ("elementwise", "reductions", "formats", "matrices", "host"):
        rows = parts.get(part, {"rows": []})["rows"]
        if rows:
            lines.append(f"**{part}**\n\n{table((*columns, *others), map(_gpu_row, rows))}")
    left_out = [f"{part}: {len(found['left_out'])}" for part, found in parts.items() if found["left_out"]]
    if left_out:
        lines.append(f"Rows that there was no time for: {'; '.join(left_out)}.")
    return {"gpu": "\n\n".join(lines)}


def _gpu_row(row: Result) -> Sequence[Any]:
    about = (row["optimizer"], row["form"], f"{row['numel'] / 1e6:,.1f} M", row["tensors"])
    if "error" in row:
        return (*about, *[None] * 4, row["error"])
    own, theirs = row["times"]["hfoptim"], []
    for label, found in row.get("others", {}).items():
        times = row["times"].get(label)
        said = found.get("error") or f"{number(times['median_ms'])}, {number(times['host_ms'])}, {found['all']}"
        theirs.append(f"{label}: {said}")
    return (
        *about,
        *(number(own["median_ms"]), percent(row.get("of_copy_rate"), 0), number(own["host_ms"])),
        *(row["launches"]["all"], row["by"], "; ".join(theirs)),
    )


# -- kernels for a GPU, without one ----------------------------------------------------------------------------------

# Launches of a step before there was a generator for GPUs, counted in the same way: torch.compile, and what it left to
# torch's operations.
LAUNCHES_BEFORE = {
    **{"adamw": 67, "adam_mini": 405, "prodigy": 1735, "novograd": 1770},
    **{"lars": 2110, "lamb": 2800, "adafactor": 2850, "muon": 600},
}


def launches_tables(result: Result) -> dict[str, str]:
    """Launches of a step, before and now."""
    rows = [
        (
            *(row["optimizer"], LAUNCHES_BEFORE.get(row["optimizer"]), row["launches"]),
            *(sum(row["generated"].values()), row["torch"], row["products"] or None, row["copies"], row["waits"]),
        )
        for row in result["rows"]
    ]
    columns = ("optimizer", "before", "launches", "of our kernels", "of torch's", "products", "copies", "waits")
    above = [
        f"{row['optimizer']} ({row['launches']} of {row['wanted']})"
        for row in result["rows"]
        if row["wanted"] is not None and row["launches"] > row["wanted"]
    ]
    said = (
        "Wanted were at most 2 launches of rules that look at entries alone, 4 with sums over tensors, 8 with rows and "
    )
    said += f"columns. Above that: {', '.join(above) or 'none'}."
    return {"launches": f"{where(result['about'])}\n\n{said}\n\n{table(columns, rows)}"}


def kernels_tables(result: Result) -> dict[str, str]:
    """What kernels are compiled to: for each optimizer and form, its passes over memory in order."""
    found = []
    for row in result["rows"]:
        walks = [kernel for kernel in row.get("kernels", ()) if "instructions" in kernel]
        if row["shape"] == "matrix" and walks:
            found.append((row, walks))
    both = {(row["name"], row["form"], row["aligned"]): walks for row, walks in found}
    rows = []
    for row, walks in found:
        if row["aligned"]:
            read, written = (sum(kernel[what] for kernel in walks) for what in ("read", "written"))
            unaligned = both[row["name"], row["form"], False]
            rows.append(
                (
                    *(row["name"], row["form"], f"{read:.4g}", f"{written:.4g}"),
                    *(_passes(walks, "instructions"), _passes(unaligned, "instructions"), _passes(walks, "registers")),
                )
            )
    columns = ("optimizer", "kept in", "bytes read", "written", "instructions", "unaligned", "registers")
    return {"kernels": f"{where(result['about'])}\n\n{table(columns, rows)}"}


def _passes(walks: list[Result], what: str) -> str:
    return " + ".join(f"{kernel[what]:.0f}" for kernel in walks)


# -- the command -----------------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[Result], dict[str, str]]] = {
    "step_time": step_time_tables,
    "floors": floors_tables,
    "memory": memory_tables,
    "quality": quality_tables,
    "scaling": scaling_tables,
    "launches": launches_tables,
    "kernels": kernels_tables,
    "gpu": gpu_tables,
}
PICTURES: dict[str, Callable[[Result, Any], None]] = {
    "step_time": draw_step_time,
    "memory": draw_memory,
    "quality": draw_quality,
    "scaling": draw_scaling,
}


def draw(result: Result, picture: Path, paint: Callable[[Result, Any], None]) -> None:
    """Write a picture."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 8, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(layout="constrained")
        paint(result, figure)
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, dpi=110)


def main(
    results: Annotated[Path, typer.Option(help="folder with the JSON files")] = measure.RESULTS,
    document: Annotated[Path, typer.Option(help="the file with the markers")] = ROOT / "docs" / "performance.md",
    images: Annotated[Path, typer.Option(help="folder for the pictures")] = ROOT / "docs" / "images",
) -> None:
    """Write docs/performance.md's tables and pictures."""
    text = document.read_text()
    for name, tables in TABLES.items():
        file = results / f"{name}.json"
        if not file.exists():
            console.OUT.print(f"{name}: no results")
            continue
        result = json.loads(file.read_text())
        if result.get("benchmark") != name:
            console.OUT.print(f"{name}: {file.name} is not of this benchmark; run benchmarks/{name}.py again")
            continue
        for marker, body in tables(result).items():
            text = fill(text, marker, body)
        if name in PICTURES:
            draw(result, images / f"performance_{name}.png", PICTURES[name])
        console.OUT.print(f"{name}: written")
    document.write_text(text)


if __name__ == "__main__":
    typer.run(main)
