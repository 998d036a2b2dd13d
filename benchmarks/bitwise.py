"""Whether any number has changed: every optimizer stepped in two checkouts, and a SHA-256 of all that came of it.

    python benchmarks/bitwise.py against ../before                     # this checkout against another one
    python benchmarks/bitwise.py against ../before --only "adam*" --sharded
    python benchmarks/bitwise.py record before.json --checkout ../before    # or in three calls
    python benchmarks/bitwise.py record after.json --like before.json
    python benchmarks/bitwise.py compare before.json after.json

Names of the registry and the variants of the test entries are stepped over runners, dtypes, roundings, formats of the
state, layouts, groups and changing learning rates, wrapped, over a model, with a checkpoint in the middle; peers'
checkpoints are loaded; with `--sharded`, FSDP2 and DDP run on two processes. Parameters, each state by name and each
option of the groups have a digest of their own, so what differs is named, and a state or an option that is new or gone
counts as a difference. Where steps raise, the error's type is recorded. Each checkout runs in a process of its own, on
one thread; what is stepped follows from the older one alone (bitwise_jobs.py).
"""

from __future__ import annotations

import ast
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from datetime import timedelta
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parent.parent
RANKS = 2
SHOWN = 20

Record = dict[str, Any]
Only = Annotated[
    list[str] | None,
    typer.Option(help="patterns of names, such as adamw or 'adam*', or of keys, such as 'large/*'; several together"),
]
Checkout = Annotated[Path, typer.Option(help="the checkout whose hfoptim is stepped")]
Sharded = Annotated[bool, typer.Option(help="FSDP2 and DDP on two processes, too")]
Thorough = Annotated[bool, typer.Option(help="compile every format: half an hour")]

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)


def chosen(key: str, only: list[str] | None) -> bool:
    """Whether a key of a record fits a pattern of a name, a name with its variant, or, with slashes, a whole key."""
    label = key.split("/")[1]
    name = label.split("[")[0].split("<")[0]
    plain = name.removeprefix("lookahead_").removeprefix("sam_")
    return not only or any(fnmatch(each, pattern) for each in (key, label, name, plain) for pattern in only)


# -- one side --------------------------------------------------------------------------------------------------------


def side(job: Record) -> None:
    """What runs in a process of its own: step everything of a plan, or of the checkout's own, and write the digests."""
    import bitwise_jobs
    import torch

    import hfoptim

    checkout = Path(job["checkout"])
    if checkout not in Path(hfoptim.__file__).parents:
        raise RuntimeError(f"hfoptim was imported from {hfoptim.__file__}, not from {checkout}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    plan = ast.literal_eval(job["plan"] or repr(bitwise_jobs.plan_of(checkout)))
    if job["rank"] is None:
        jobs = bitwise_jobs.jobs(plan, job["thorough"])
    else:
        store = f"file://{job['output']}.store"
        rank, world = job["rank"], job["ranks"]
        torch.distributed.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=120)
        )
        jobs = bitwise_jobs.sharded_jobs(plan)
    digests: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for each in jobs:
        if chosen(each.key, job["only"]):
            section, start = each.key.split("/")[0], time.perf_counter()
            digests[each.key] = each.run()
            seconds[section] += time.perf_counter() - start
            counts[section] += 1
    print(*(f"    {section}: {counts[section]} in {seconds[section]:.0f} s" for section in counts), sep="\n")
    suffix = "" if job["rank"] is None else f".{job['rank']}"
    Path(f"{job['output']}{suffix}").write_text(json.dumps({"plan": repr(plan), "digests": digests}))
    if job["rank"] is not None:
        # A gloo thread that still holds a tensor when Python ends aborts the process.
        gc.collect()
        torch.distributed.destroy_process_group()


def _start(checkout: Path, folder: Path, **job: Any) -> subprocess.Popen[bytes]:
    job = {"checkout": str(checkout), "only": None, "plan": None, "rank": None, "thorough": False, **job}
    file = folder / f"job.{job['rank']}.json"
    file.write_text(json.dumps(job))
    environment = {
        **os.environ,
        **{"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "KERAS_BACKEND": "torch"},
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    return subprocess.Popen([sys.executable, __file__, "side", str(file)], env=environment)


def _ended(processes: list[subprocess.Popen[bytes]]) -> None:
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise RuntimeError(f"a process that steps optimizers ended with {codes}; what it said is above")


def recorded(checkout: Path, only: list[str] | None, sharded: bool, thorough: bool, plan: str | None = None) -> Record:
    """Step everything in a checkout.

    Args:
        checkout: its path.
        only: patterns of names; None for all.
        sharded: on two processes, too.
        thorough: compile every form.
        plan: of the older checkout; None makes this one's.

    Returns:
        The record: the plan, and digests by key.
    """
    checkout = checkout.resolve()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder, shared = Path(name), {"only": only, "thorough": thorough}
        _ended([_start(checkout, folder, output=str(folder / "all"), plan=plan, **shared)])
        found = json.loads((folder / "all").read_text())
        plan, digests = found["plan"], found["digests"]
        if sharded:
            job = {"output": str(folder / "sharded"), "plan": plan, "ranks": RANKS, **shared}
            _ended([_start(checkout, folder, rank=rank, **job) for rank in range(RANKS)])
            for rank in range(RANKS):
                digests |= json.loads((folder / f"sharded.{rank}").read_text())["digests"]
    if not digests:
        raise typer.BadParameter(f"no optimizer is called {' or '.join(only or ())}")
    raised = sum("raised" in found for found in digests.values())
    took = time.perf_counter() - start
    print(f"{checkout}: {len(digests)} combinations in {took:.0f} s, {raised} of them raise")
    return {"benchmark": "bitwise", "plan": plan, "only": only, "thorough": thorough, "digests": digests}


# -- both sides ------------------------------------------------------------------------------------------------------


def differing(before: Record, after: Record) -> dict[str, list[str]]:
    """What differs, by key: parts of the digests, or what raised."""
    found: dict[str, list[str]] = {}
    for key, old in before["digests"].items():
        new = after["digests"].get(key, {"not recorded": ""})
        if new != old:
            errors = [side.get("raised", "nothing") for side in (old, new)]
            raised = ["raises {}, now {}".format(*errors)] if len(set(errors)) > 1 else []
            gone = [f"{part} is gone" for part in old if part not in new and part != "raised"]
            added = [f"{part} is new" for part in new if part not in old and part != "raised"]
            parts = [part for part in old if part != "raised" and part in new and old[part] != new[part]]
            found[key] = raised or [*gone, *added, *parts]
    return found


def report(before: Record, after: Record) -> bool:
    """Print which parts differ, of which optimizers, in which combinations; whether none does."""
    found = differing(before, after)
    keys: dict[str, list[str]] = defaultdict(list)
    parts: dict[str, dict[str, None]] = defaultdict(dict)
    for key, differ in found.items():
        label = key.split("/")[1]
        keys[label].append(key)
        parts[label] |= dict.fromkeys(differ)
    groups: dict[str, list[str]] = defaultdict(list)
    for label, own in parts.items():
        groups[", ".join(own)].append(label)
    for what, labels in list(groups.items())[:SHOWN]:
        some = [key for label in labels for key in keys[label]]
        print(f"{', '.join(labels)}: {what}\n    in {len(some)}: {'; '.join(some[:3])}{' ...' if some[3:] else ''}")
    if len(groups) > SHOWN:
        print(f"... and {len(groups) - SHOWN} more groups of differences")
    print(f"{len(before['digests'])} combinations compared, {len(found)} differ")
    return not found


def _read(path: Path, only: list[str] | None = None, sharded: bool = True) -> Record:
    record: Record = json.loads(path.read_text())
    keys = record["digests"]
    record["digests"] = {
        key: keys[key] for key in keys if chosen(key, only) and (sharded or not key.startswith("sharded"))
    }
    return record


@app.command()
def record(
    output: Path,
    checkout: Checkout = ROOT,
    like: Annotated[Path | None, typer.Option(help="an older record, whose combinations are stepped")] = None,
    only: Only = None,
    sharded: Sharded = False,
    thorough: Thorough = False,
) -> None:
    """Step everything in one checkout, and write the digests."""
    plan = json.loads(like.read_text())["plan"] if like else None
    output.write_text(json.dumps(recorded(checkout, only, sharded, thorough, plan), indent=0))


@app.command()
def compare(before: Path, after: Path, only: Only = None) -> None:
    """Compare two records; ends with 1 where anything differs."""
    raise typer.Exit(not report(_read(before, only), _read(after, only)))


@app.command()
def against(
    before: Path, checkout: Checkout = ROOT, only: Only = None, sharded: Sharded = False, thorough: Thorough = False
) -> None:
    """Step everything in this checkout and in an older one, or its record, and compare; ends with 1 at a difference."""
    old = recorded(before, only, sharded, thorough) if before.is_dir() else _read(before, only, sharded)
    new = recorded(checkout, only, sharded, thorough, old["plan"])
    raise typer.Exit(not report(old, new))


@app.command(hidden=True, name="side")
def _side(job: Path) -> None:
    side(json.loads(job.read_text()))


if __name__ == "__main__":
    app()
