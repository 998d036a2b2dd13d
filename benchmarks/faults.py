"""Random faults in training on two processes: nobody waits for ever, all decide alike, and no whole checkpoint is lost.

    python benchmarks/faults.py --runs 500 --seed 0
    python benchmarks/faults.py --runs 1 --seed 137          # run 137 again

Run i is made by the seed `seed + i`, which is printed. Two processes train with FSDP2 and StepGuard, and save with
torch.distributed.checkpoint as they go. One of them meets a fault: killed in a step or while it saves, a NaN, a
gradient that is missing, a parameter frozen from some step on, or a disk that is full (a limit on the size of its
files, which the kernel keeps). Afterwards this is checked: both processes have ended within the limit; neither has gone
on where the other has not; steps that were skipped were skipped by both; the newest whole checkpoint loads, and trained
on without the fault it gives the weights of a run that never met it.
"""

from __future__ import annotations

import errno
import faulthandler
import importlib
import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import typer
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

import hfoptim

RANKS, STEPS, EVERY = 2, 8, 2
# Seconds: what the ranks wait for each other, and what a run may take; a busy machine lets a process lie for ten.
WAIT, LIMIT = 40, 180
NAMES = ("adamw", "lamb", "muon", "adafactor", "prodigy", "soap")
FAULTS = ("kill in a step", "kill in a save", "nan", "missing", "frozen", "full disk")
SKIPPED = ("nan", "missing", "frozen")
# What torch imports at the first step, or the first checkpoint.
LATE = ("torch._dynamo", "torch.distributed.checkpoint._fsspec_filesystem", "torch.onnx")

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)


def draw(seed: int) -> dict[str, Any]:
    """What a run is like."""
    chosen = random.Random(seed)
    fault = chosen.choice(FAULTS)
    return {
        "seed": seed,
        "name": chosen.choice(NAMES),
        "fault": fault,
        "rank": chosen.randrange(RANKS),
        "step": chosen.randrange(1, STEPS),
        "param": chosen.randrange(4),
        "way": chosen.choice(("raise", "skip")) if fault in SKIPPED else "raise",
        # Of a kill: seconds after the beginning of the step or the save. Of a full disk: bytes that still go.
        "after": chosen.random() * 0.02,
        "bytes": chosen.randrange(0, 3000),
        # Who keeps the store by which the ranks find each other: a process beside them, as with torchrun, or rank 0.
        "store": chosen.choice(("launcher", "rank 0")),
    }


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 7)).double()


def gradients(model: nn.Module, step: int) -> None:
    param: Any
    for place, param in enumerate(model.parameters()):
        drawn = torch.Generator().manual_seed(1000 * step + place)
        whole = torch.randn(param.shape, generator=drawn, dtype=torch.float64)
        param.grad = distribute_tensor(whole, param.device_mesh, param.placements, src_data_rank=None)


def state_of(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}


def whole_checkpoints(folder: Path) -> list[Path]:
    """Those that are whole, by their step: torch writes `.metadata` last, once all ranks are done."""
    return sorted((each.parent for each in folder.glob("step-*/.metadata")), key=lambda path: path.name)


def killed_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


def begin(run: dict[str, Any], rank: int) -> None:
    """Join the others. Not by a file: where a rank is killed while it writes there, torch reads it for ever."""
    torch.set_num_threads(1)
    wait = timedelta(seconds=WAIT)
    keeps = run["store"] == "rank 0" and rank == 0
    store = dist.TCPStore("127.0.0.1", run["port"], None, keeps, timeout=wait, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=wait)


def made(name: str) -> tuple[nn.Module, Any]:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    return model, hfoptim.create_optimizer_v2(model, name, lr=0.05)


def train(run: dict[str, Any], folder: Path, rank: int) -> None:
    """One process of a run; what it did goes into a file, line by line."""
    begin(run, rank)
    model, optimizer = made(run["name"])
    guard = hfoptim.StepGuard(optimizer, nonfinite=run["way"], differing=run["way"], timeout=WAIT)
    mine = run["rank"] == rank
    with (folder / f"said.{rank}").open("w", buffering=1) as said:
        for step in range(STEPS):
            due = mine and step == run["step"]
            gradients(model, step)
            param = list(model.parameters())[run["param"]]
            grad: Any = param.grad
            if due and run["fault"] == "kill in a step":
                killed_after(run["after"] / 10)
            elif due and run["fault"] == "nan":
                here = grad.to_local()
                here.view(-1)[:1] = float("nan")
            elif (due and run["fault"] == "missing") or (mine and step >= run["step"] and run["fault"] == "frozen"):
                param.grad = None
            said.write(f"{'step' if guard.step() else 'skip'} {step}\n")
            if (step + 1) % EVERY == 0:
                saves = mine and step >= run["step"]
                if saves and run["fault"] == "kill in a save":
                    killed_after(run["after"])
                if saves and run["fault"] == "full disk":
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (run["bytes"], resource.RLIM_INFINITY))
                dcp.save(state_of(model, optimizer), checkpoint_id=folder / f"step-{step + 1:03d}")
                said.write(f"saved {step + 1}\n")
        said.write("end\n")


def resume(run: dict[str, Any], folder: Path, rank: int) -> None:
    """Train on from the newest whole checkpoint, or from the start, and compare with a run without faults.

    The steps that were skipped before it are skipped in that run, too.
    """
    begin(run, rank)
    told = json.loads((folder / "resume.json").read_text())
    model, optimizer = made(run["name"])
    if told["checkpoint"]:
        state = state_of(model, optimizer)
        dcp.load(state, checkpoint_id=told["checkpoint"])
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
    other, straight = made(run["name"])
    for step in range(STEPS):
        for each, stepped in ((model, optimizer), (other, straight)):
            if (each is model and step < told["step"]) or step in told["skipped"]:
                continue
            gradients(each, step)
            stepped.step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs.full_tensor(), rtol=1e-9, atol=1e-12)  # type: ignore[attr-defined]


def _process(task: Any, run: dict[str, Any], folder: Path, rank: int) -> None:
    sys.stdout = sys.stderr = (folder / f"{task.__name__}.{rank}.txt").open("w", buffering=1)
    faulthandler.dump_traceback_later(LIMIT - 5, file=sys.stderr)
    try:
        task(run, folder, rank)
    except BaseException as error:
        traceback.print_exc()
        (folder / f"{task.__name__}.error.{rank}").write_text(f"{type(error).__name__}: {error}")
        os._exit(3)
    os._exit(0)


def launch(task: Any, run: dict[str, Any], folder: Path) -> tuple[list[int | None], float]:
    """The exit codes of both processes, None of one that had to be ended, and the seconds they took."""
    context = multiprocessing.get_context("fork")
    kept = None
    if run["store"] == "launcher":
        kept = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        run = {**run, "port": kept.port}
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            run = {**run, "port": free.getsockname()[1]}
    running = [context.Process(target=_process, args=(task, run, folder, rank)) for rank in range(RANKS)]
    start = time.monotonic()
    for process in running:
        process.start()
    for process in running:
        process.join(max(0.0, start + LIMIT - time.monotonic()))
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()
        process.join()
    del kept
    return codes, time.monotonic() - start


def wrong_with(run: dict[str, Any], folder: Path) -> str:
    """What was not as it is to be; empty if all was."""
    codes, _ = launch(train, run, folder)
    if None in codes:
        hung = folder / f"train.{codes.index(None)}.txt"
        return f"a process hung: {codes}\n{hung.read_text()}"
    said = [(folder / f"said.{rank}").read_text().splitlines() for rank in range(RANKS)]
    failed = [code != 0 for code in codes]
    errors = [folder / f"train.error.{rank}" for rank in range(RANKS)]
    texts = [path.read_text() if path.exists() else "" for path in errors]
    if failed[0] != failed[1]:
        return f"one process ended well and the other did not: {codes}"
    # A rank that was killed may have ended before it wrote down what both have done.
    shorter = min(map(len, said))
    if said[0][:shorter] != said[1][:shorter] or max(map(len, said)) > shorter + run["fault"].startswith("kill"):
        return f"the ranks did not do the same: {said}"
    if run["fault"] in SKIPPED:
        if run["way"] == "raise" and (texts[0] != texts[1] or f"rank {run['rank']}" not in texts[0]):
            return f"the ranks did not say the same, or not which rank it was: {texts}"
        if run["way"] == "skip" and (failed[0] or f"skip {run['step']}" not in said[0]):
            return f"the step was not skipped: {said[0]} {texts}"
    if run["fault"] == "full disk" and failed[0] and not any(name in texts[0] + texts[1] for name in _FULL):
        return f"the disk was full, and that was not said: {texts}"
    skipped = [int(line.split()[1]) for line in said[0] if line.startswith("skip")]
    whole = whole_checkpoints(folder)
    saved = [int(line.split()[1]) for each in said for line in each if line.startswith("saved")]
    step = int(whole[-1].name.split("-")[1]) if whole else 0
    if step < max(saved, default=0):
        return f"step {max(saved)} was saved, and the newest whole checkpoint is of step {step}"
    told = {"checkpoint": str(whole[-1]) if whole else "", "step": step, "skipped": skipped}
    (folder / "resume.json").write_text(json.dumps(told))
    codes, _ = launch(resume, run, folder)
    if codes != [0] * RANKS:
        return f"the checkpoint of step {step} does not go on: {codes} {(folder / 'resume.0.txt').read_text()[-800:]}"
    return ""


_FULL = (os.strerror(errno.EFBIG), os.strerror(errno.ENOSPC), "unexpected pos", "failed writing")


@app.command()
def main(
    runs: Annotated[int, typer.Option(help="how many")] = 500,
    seed: Annotated[int, typer.Option(help="of the first one")] = 0,
    minutes: Annotated[float, typer.Option(help="after which no more are begun")] = 60.0,
) -> None:
    """Run them, and say what was wrong; ends with 1 if anything was."""
    # Imported here, for all processes: on a busy machine it takes longer than a run may.
    for name in NAMES:
        hfoptim.get_optimizer_class(name)
    for module in LATE:
        importlib.import_module(module)
    start, counts, wrong = time.monotonic(), Counter[str](), 0
    for number in range(runs):
        if time.monotonic() - start > 60 * minutes:
            break
        run = draw(seed + number)
        with tempfile.TemporaryDirectory() as folder:
            found = wrong_with(run, Path(folder))
        counts[f"{run['fault']} ({run['way']})" if run["fault"] in SKIPPED else run["fault"]] += 1
        wrong += bool(found)
        about = f"seed {run['seed']}: {run['name']}, {run['fault']} on rank {run['rank']} at step {run['step']}"
        print(f"{about}, {run['way']}: {found or 'as it is to be'}", flush=True)
    print(f"{sum(counts.values())} runs, {wrong} wrong: {dict(sorted(counts.items()))}", flush=True)
    raise typer.Exit(int(wrong > 0))


if __name__ == "__main__":
    app()
