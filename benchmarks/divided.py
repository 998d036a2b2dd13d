"""Steps on several processes: matrices divided among them, every process doing all, and peers; over gloo, on the CPU.

    python benchmarks/divided.py --python .venv-providers/bin/python --dion CHECKOUT_OF_DION
    python benchmarks/divided.py --ranks 2 --only muon --width 256

All contenders of a number of ranks live in the same processes and take their steps in turn, from equal gradients, so
that what else the machine does meets all of them. A figure is the median over the turns of the slowest rank's time, as
a share of the first contender's of its family; CPU-seconds, which say more on a busy machine, are the mean over the
ranks. SOAP and Shampoo step a transformer of half the width. Peers are left out where they cannot be imported:
DeepSpeed (`--python` of an environment that has it), Microsoft's Dion repository (`--dion`). docs/scaling.md has the
tables.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest import mock

import console
import measure
import report
import torch
import torch.distributed as dist
import typer
from torch import Tensor, nn

PAGE = report.ROOT / "docs" / "scaling.md"
# Bytes per second of the link in the part about overlapping.
LINK = 10e6
# Entries of a batch or a round in the part about overlapping: enough of them to overlap.
SMALL_BATCH = 1 << 18


class Contender(NamedTuple):
    """One way of taking a step.

    Args:
        family: with what it is compared.
        label: what it is called in tables.
        step: takes the steps of a turn.
        optimizer: whose state is counted; None: not counted.
    """

    family: str
    label: str
    step: Callable[[], Any]
    optimizer: torch.optim.Optimizer | None


def parameters(shapes: measure.Shapes) -> dict[str, nn.Parameter]:
    """Parameters with gradients, the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in shapes.items():
        made[name] = nn.Parameter(torch.randn(shape, generator=generator) * 0.02)
        made[name].grad = torch.randn(shape, generator=generator)
    return made


def repeated(optimizer: Any, times: int) -> Callable[[], None]:
    def steps() -> None:
        for _ in range(times):
            optimizer.step()

    return steps


# -- contenders ------------------------------------------------------------------------------------------------------


def ours(shapes: measure.Shapes, narrow: measure.Shapes) -> Iterator[Contender]:
    """Muon, SOAP and Shampoo, by every rank and divided; the latter two on a narrower model."""
    import hfoptim

    # SOAP's bases are new at every fifth step, Shampoo's roots likewise: a turn is five steps.
    options: dict[str, tuple[dict[str, Any], int]] = {
        "muon": ({}, 1),
        "soap": ({"precondition_frequency": 5}, 5),
        "distributed_shampoo": ({"precondition_frequency": 5}, 5),
    }
    for name, (own, times) in options.items():
        # The embeddings are not theirs: with AdamW, as in practice, and so not compared here.
        chosen = shapes if name == "muon" else {key: shape for key, shape in narrow.items() if ".h." in key}
        for divided in (False, True):
            cls = hfoptim.get_optimizer_class(name)
            optimizer = cls(list(parameters(chosen).items()), lr=1e-3, distribute_matrices=divided, **own)
            label = f"{name}, {'distribute_matrices' if divided else 'every rank all'}"
            yield Contender(name, label, repeated(optimizer, times), optimizer)


def dion(shapes: measure.Shapes, checkout: str) -> Iterator[Contender]:
    """Muon of Microsoft's repository under DDP, with Newton-Schulz in float32, as ours.

    By itself it multiplies in bfloat16, for which this machine's processor may have nothing.
    """
    sys.path.insert(0, checkout)
    theirs = importlib.import_module("dion.muon").Muon

    def quintic(matrix: Tensor, epsilon: Any = 1e-7) -> Tensor:
        x = matrix.float()
        x = x.mT if matrix.shape[-2] > matrix.shape[-1] else x
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + epsilon)
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return (x.mT if matrix.shape[-2] > matrix.shape[-1] else x).to(matrix.dtype)

    params = parameters(shapes)
    matrices = [p for name, p in params.items() if p.ndim == 2 and ".h." in name]
    rest = [p for name, p in params.items() if p.ndim != 2 or ".h." not in name]
    groups = [{"params": matrices}, {"params": rest, "algorithm": "adamw"}]
    optimizer = theirs(groups, distributed_mesh=dist.group.WORLD, lr=1e-3, nesterov=True, newton_schulz_func=quintic)
    yield Contender("muon", "Dion repository's Muon, Newton-Schulz in float32", optimizer.step, optimizer)


def adams(shapes: measure.Shapes) -> Iterator[Contender]:
    """AdamW: ours and torch's on every rank, torch's divided by its ZeroRedundancyOptimizer."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    import hfoptim

    mine = hfoptim.AdamW(list(parameters(shapes).items()), lr=1e-3)
    yield Contender("adamw", "adamw, every rank all", mine.step, mine)
    plain = torch.optim.AdamW(parameters(shapes).values(), lr=1e-3)
    yield Contender("adamw", "torch's AdamW, every rank all", plain.step, plain)
    zero = ZeroRedundancyOptimizer(parameters(shapes).values(), torch.optim.AdamW, lr=1e-3)
    yield Contender("adamw", "torch's ZeroRedundancyOptimizer of its AdamW", zero.step, zero.optim)


def deepspeed_zero(shapes: measure.Shapes) -> Iterator[Contender]:
    """DeepSpeed's ZeRO-1 of torch's AdamW: `engine.step()`, without the averaging of gradients before it."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    deepspeed = importlib.import_module("deepspeed")
    # Minutes of compiling; gloo does as well.
    vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)

    class Dots(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            made = parameters(shapes)
            self.weights = nn.ParameterList(made.values())
            self.directions = [p.grad for p in made.values()]

        def forward(self) -> Tensor:
            return torch.stack([(w * d).sum() for w, d in zip(self.weights, self.directions, strict=True)]).sum()

    model = Dots()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=inner, config=config)
    ready = [False]

    def prepare() -> None:
        engine.backward(engine())
        ready[0] = True

    def step() -> None:
        assert ready[0]
        engine.step()
        ready[0] = False

    step.prepare = prepare  # type: ignore[attr-defined]
    yield Contender("adamw", "DeepSpeed ZeRO-1 of torch's AdamW", step, inner)


class Late:
    """A transfer that is not over before the link, which takes one after the other, has had the time for its bytes."""

    free = 0.0

    def __init__(self, work: Any, size: int) -> None:
        self.work = work
        Late.free = self.over = max(time.perf_counter(), Late.free) + size / LINK

    def wait(self) -> None:
        self.work.wait()
        time.sleep(max(0.0, self.over - time.perf_counter()))


@contextmanager
def link(at_once: bool) -> Iterator[None]:
    """Transfers take as long as over a link of `LINK`; `at_once`: each is waited for where it begins.

    What gloo moves within a machine takes the processors' time, of which nothing can be hidden behind other work of
    theirs; a link of its own does not.
    """
    module: Any = importlib.import_module("hfoptim.engine.distributed.owners")

    def late(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(received: Tensor, sent: Tensor, *args: Any, **kwargs: Any) -> Any:
            work = Late(function(received, sent, *args, **kwargs), received.nbytes)
            if at_once:
                work.wait()
            return work

        return call

    exchanged, gathered = (
        mock.patch.object(dist, "all_to_all_single", late(dist.all_to_all_single)),
        late(module._all_gather),
    )
    with exchanged, mock.patch.object(module, "_all_gather", gathered):
        yield


def overlapped(shapes: measure.Shapes) -> Iterator[Contender]:
    """Muon divided, and under FSDP2, in many batches: overlapped, not overlapped, and the transfers alone."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor

    import hfoptim
    from hfoptim.engine.backends import MATRIX
    from hfoptim.engine.distributed import owners, sharded

    owners.ROUND = sharded.BATCH = SMALL_BATCH
    matrices = {key.replace(".", "_"): shape for key, shape in shapes.items() if ".h." in key and len(shape) == 2}

    def over_link(step: Callable[[], Any], at_once: bool) -> Callable[[], None]:
        def steps() -> None:
            with link(at_once):
                step()

        return steps

    divided = hfoptim.Muon(list(parameters(matrices).items()), lr=1e-3, distribute_matrices=True)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = nn.Module()
    for key, param in parameters(matrices).items():
        model.register_parameter(key, param)
    grads = {key: param.grad for key, param in model.named_parameters()}
    fully_shard(model, mesh=mesh)
    for key, param in model.named_parameters():
        assert isinstance(param, DTensor)
        param.grad = distribute_tensor(grads[key], mesh, param.placements, src_data_rank=None)
    fsdp2 = hfoptim.Muon(list(model.named_parameters()), lr=1e-3)

    def moved_only() -> None:
        with mock.patch.object(MATRIX, "step", return_value=None):
            fsdp2.step()

    for family, optimizer, alone in (
        ("divided, transfers", divided, lambda: divided.owners().share()),
        ("FSDP2, transfers", fsdp2, moved_only),
    ):
        yield Contender(family, "waited for", over_link(optimizer.step, True), None)
        yield Contender(family, "overlapped", over_link(optimizer.step, False), None)
        yield Contender(family, "alone", over_link(alone, True), None)


# -- one process -----------------------------------------------------------------------------------------------------


def work(job: dict[str, Any], rank: int) -> None:
    """Take turns, as one of the ranks, and write what the first one knows of all."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ranks = job["ranks"]
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)})
    limit = timedelta(seconds=600)
    dist.init_process_group("gloo", init_method=f"file://{job['store']}", rank=rank, world_size=ranks, timeout=limit)
    shapes = measure.gpt2_shapes(job["layers"], job["width"], job["vocab"], 128)
    contenders, missing = [], {}
    makers: dict[str, Callable[[], Iterator[Contender]]] = {
        "ours": lambda: ours(shapes, measure.gpt2_shapes(job["layers"], job["width"] // 2, job["vocab"], 128)),
        "dion": lambda: dion(shapes, job["dion"]),
        "adamw": lambda: adams(shapes),
        "deepspeed": lambda: deepspeed_zero(shapes),
        "overlapped": lambda: overlapped(shapes),
    }
    for name in job["parts"]:
        try:
            contenders += [each for each in makers[name]() if not job["only"] or each.family in job["only"]]
        except ImportError as error:  # noqa: PERF203
            missing[name] = str(error)
    rows: list[dict[str, Any]] = [
        {"family": each.family, "label": each.label, "wall": [], "cpu": []} for each in contenders
    ]
    for turn in range(job["repeats"] + 1):
        for each, row in zip(contenders, rows, strict=True):
            getattr(each.step, "prepare", lambda: None)()
            dist.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            each.step()
            spent = torch.tensor([time.perf_counter() - wall, time.process_time() - cpu], dtype=torch.float64)
            found = [torch.empty_like(spent) for _ in range(ranks)]
            dist.all_gather(found, spent)
            if turn:  # the first one makes state, and compiles
                row["wall"].append(max(float(one[0]) for one in found))
                row["cpu"].append(sum(float(one[1]) for one in found) / ranks)
        if rank == 0:
            print("turn", turn, flush=True)
    for each, row in zip(contenders, rows, strict=True):
        kept = torch.tensor(float(measure.state_bytes(each.optimizer)) if each.optimizer else 0.0)
        dist.all_reduce(kept, dist.ReduceOp.MAX)
        row["state_bytes"] = float(kept)
    if rank == 0:
        Path(job["output"]).write_text(json.dumps({"rows": rows, "missing": missing, "torch": torch.__version__}))
    dist.barrier()


def processes(job: dict[str, Any], python: str, limit: float) -> dict[str, Any]:
    """Run the ranks of one number.

    Raises:
        RuntimeError: one of them failed or took too long.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job |= {"store": str(folder / "store"), "output": str(folder / "found.json")}
        said = [folder / f"{rank}.txt" for rank in range(job["ranks"])]
        running = []
        for rank, file in enumerate(said):
            paths = os.pathsep.join([str(report.ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
            line = [python, __file__, "--child", json.dumps(job), "--rank", str(rank)]
            with file.open("w") as output:
                running.append(subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, env=environment))
        deadline = time.monotonic() + limit
        try:
            codes: list[int | None] = [each.wait(max(1.0, deadline - time.monotonic())) for each in running]
        except subprocess.TimeoutExpired:
            codes = [None]
        finally:
            for each in running:
                each.kill()
        if any(codes):
            raise RuntimeError(
                "\n".join(f"{code}" for code in codes) + "\n" + "\n".join(f.read_text()[-3000:] for f in said)
            )
        found: dict[str, Any] = json.loads((folder / "found.json").read_text())
        return found


# -- the tables ------------------------------------------------------------------------------------------------------


def summarised(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Medians of each contender, with their share of the first of its family."""
    firsts: dict[str, dict[str, Any]] = {}
    rows = []
    for row in found["rows"]:
        first = firsts.setdefault(row["family"], row)
        shares = [own / of for own, of in zip(row["wall"], first["wall"], strict=True)]
        rows.append(
            {
                "family": row["family"],
                "label": row["label"],
                "wall_ms": 1e3 * statistics.median(row["wall"]),
                "share": statistics.median(shares),
                "cpu_ms": 1e3 * statistics.median(row["cpu"]),
                "cpu_share": statistics.median(row["cpu"]) / statistics.median(first["cpu"]),
                "state_bytes": row["state_bytes"],
                "repeats": len(row["wall"]),
            }
        )
    return rows


def tables(results: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """The tables of docs/scaling.md by name."""
    steps, moved = [], []
    for ranks, rows in results.items():
        by_family: dict[str, dict[str, float]] = {}
        for row in rows:
            if row["family"].endswith("transfers"):
                by_family.setdefault(row["family"], {})[row["label"]] = row["wall_ms"]
                continue
            state = f"{row['state_bytes'] / 1e6:.1f}"
            shares = f"{row['share']:.2f}", f"{row['cpu_share']:.2f}"
            steps.append((ranks, row["family"], row["label"], f"{row['wall_ms']:.0f}", *shares, state))
        for family, each in by_family.items():
            hidden = (each["waited for"] - each["overlapped"]) / each["alone"]
            cells = [f"{each[label]:.0f}" for label in ("waited for", "overlapped", "alone")]
            moved.append((ranks, family.partition(",")[0], *cells, report.percent(hidden, 0)))
    columns = ["ranks", "family", "contender", "ms", "share of the first", "its CPU time", "state of a rank, MB"]
    others = ["ranks", "Muon", "each waited for, ms", "overlapped, ms", "transfers alone, ms", "hidden"]
    return {"divided": report.table(columns, steps), "overlapped": report.table(others, moved)}


def main(
    ranks: Annotated[list[int] | None, typer.Option(help="How many processes; default 2 and 4.")] = None,
    part: Annotated[list[str] | None, typer.Option(help="Of ours, dion, adamw, deepspeed, overlapped.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Families.")] = None,
    layers: Annotated[int, typer.Option(help="Blocks of the transformer.")] = 2,
    width: Annotated[int, typer.Option(help="Its width.")] = 256,
    vocab: Annotated[int, typer.Option(help="Rows of its embedding.")] = 1024,
    repeats: Annotated[int, typer.Option(help="Turns of each.")] = 7,
    python: Annotated[str, typer.Option(help="An interpreter with DeepSpeed.")] = sys.executable,
    dion: Annotated[str, typer.Option(help="A checkout of the Dion repository.")] = "",
    limit: Annotated[float, typer.Option(help="Seconds for one number of processes.")] = 3000.0,
    output: Annotated[Path, typer.Option(help="The results.")] = measure.RESULTS / "divided.json",
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
    rank: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Take turns, and write docs/scaling.md's tables where the results are the project's."""
    if child is not None:
        work(json.loads(child), rank)
        return
    parts = part or ["ours", "adamw", "deepspeed", "overlapped", *(["dion"] if dion else [])]
    model = {"layers": layers, "width": width, "vocab": vocab}
    results: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {"ranks": {}}
    for count in ranks or [2, 4]:
        job = {"ranks": count, "parts": parts, "only": only, "repeats": repeats, "dion": dion, **model}
        found = processes(job, python, limit)
        results["ranks"][str(count)] = summarised(found)
        about = {**measure.about(), "model": model, "torch": found["torch"], "missing": found["missing"]}
        measure.write(output, "divided", {**results, "about": about})
        for row in results["ranks"][str(count)]:
            console.OUT.print(row)
        if found["missing"]:
            console.ERR.print(f"left out: {found['missing']}")
    if output == measure.RESULTS / "divided.json" and not (part or only):
        text = PAGE.read_text()
        for name, body in tables(results["ranks"]).items():
            text = report.fill(text, name, body)
        PAGE.write_text(text)


if __name__ == "__main__":
    typer.run(main)
