"""Time of one optimizer step against its floor and against the peers: GPT-2 124M shapes, all in one run.

    python benchmarks/step_time.py                      # all of docs/performance.md's tables of times
    python benchmarks/step_time.py --layers 1 --vocab 512 --repeats 3 --family lion      # a quick look
    OMP_NUM_THREADS=1 python benchmarks/step_time.py --only-adapters      # adapters and small models anew, a minute

Every optimizer of the registry is a family: ours (compiled; with coded state where that is compared), the peers'
optimizers of that name, and torch's fused AdamW. A family is timed in turn, step by step, so that a noisy machine is
noisy for all of it. Reported are medians, both sides. Adapters and small models, whose step is mostly Python's, are
timed in turn with torch's fused AdamW alone, and ours as it chooses by itself.

An optimizer's floor is torch's fused AdamW's time multiplied by the bytes that the optimizer moves (`traffic.py`) over
those that AdamW moves. Its limit is a multiple of the floor: `LIMITS`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import candidates
import console
import measure
import torch
import traffic
import typer
from candidates import BASE, Candidate
from measure import Parameters, Shapes

import hfoptim
from hfoptim.engine import Scope

# What a step may take, in floors, by scope; AdamW has a limit of its own.
LIMITS = {Scope.ELEMENT: 1.2, Scope.TENSOR: 2.0}
ADAMW_LIMIT = 1.05
# Coded state saves memory, not time.
LIMITED = ("full", "bare")


class Family:
    """Candidates that are timed in turn.

    Args:
        name: the registry's.
        params: shared by all of them.
        members: the candidates, torch's fused AdamW among them.
        time_limit: seconds that a candidate's first step may take.
    """

    def __init__(self, name: str, params: Parameters, members: list[Candidate], time_limit: float) -> None:
        self.name, self.params = name, params
        self.members = {member.label: member for member in members}
        self.time_limit = time_limit
        self.optimizers: dict[str, Any] = {}
        self.first: dict[str, float] = {}
        self.base_bytes = traffic.adamw_bytes(params.grads[0].dtype)
        self.bytes: dict[str, float | None] = {}
        self.skipped: dict[str, str] = {}

    def start(self) -> None:
        """Take each candidate's first two steps: they make state, and compile."""
        for label, member in self.members.items():
            if measure.available_memory() < _NEEDED * sum(p.nbytes for p in self.params.grads):
                self.skipped[label] = "too little memory left"
                continue
            try:
                with candidates.quiet(), measure.limited(self.time_limit), traffic.watched() as seen:
                    optimizer = member.make(self.params)
                    self.first[label] = measure.seconds(optimizer.step)
                    self.params.restore()
                if member.ours:
                    self.bytes[label] = traffic.moved_by(optimizer, seen)
                del seen
                with candidates.quiet(), measure.limited(self.time_limit):
                    optimizer.step()
                self.optimizers[label] = optimizer
            except Exception as error:  # one peer that does not run must not cost the others' times
                self.skipped[label] = measure.reason(error)
            finally:
                self.params.restore()

    def time(self, repeats: int, budget: float) -> dict[str, Any]:
        """Time them; the family's entry in the results."""
        steps = {label: optimizer.step for label, optimizer in self.optimizers.items()}
        with candidates.quiet():
            times = measure.in_turn(steps, repeats, budget, between=self.params.restore)
        timed = {label: measure.summary(each) for label, each in times.items()}
        return {
            "numel": self.params.numel,
            "tensors": len(self.params.grads),
            "busy": measure.busy(timed[BASE]),
            "finite": all(bool(param.isfinite().all()) for param in self.params.tensors),
            "rows": [self._row(label, timed) for label in timed],
            "skipped": self.skipped,
        }

    def _row(self, label: str, timed: dict[str, Any]) -> dict[str, Any]:
        member, median, base = self.members[label], timed[label]["median_ms"], timed[BASE]["median_ms"]
        row = {"candidate": label, "package": member.package, "form": member.form, **timed[label]}
        row |= {"ratio": median / base, "base_median_ms": base, "first_step_s": self.first[label]}
        row["ratio_of_fastest"] = timed[label]["min_ms"] / timed[BASE]["min_ms"]
        return row | (self._against_limit(label, median / base) if member.ours else self._against_ours(label, timed))

    def _against_limit(self, label: str, ratio: float) -> dict[str, Any]:
        """How one of ours stands to what it may take."""
        moved, scope = self.bytes[label], candidates.scope(self.optimizers[label])
        of_floor = None if moved is None else ratio * self.base_bytes / moved
        limit = None
        if self.members[label].form in LIMITED and scope in LIMITS:
            limit = ADAMW_LIMIT if self.name == "adamw" else LIMITS[scope]
        kept = None if of_floor is None or limit is None else of_floor <= limit
        return {"bytes_moved": moved, "scope": scope.name, "of_floor": of_floor, "limit": limit, "kept": kept}

    def _against_ours(self, label: str, timed: dict[str, Any]) -> dict[str, Any]:
        """Whether ours, in the form that the peer compares with, is faster. torch's AdamW is a peer of that alone."""
        form = self.members[label].form
        # Where ours has no form for the peer's savings, its default competes, which moves more.
        competing = [form] if form in candidates.CODED else [form, "full"]
        timed_ours = {member.form: own for own, member in self.members.items() if own in timed and member.ours}
        mine = [timed_ours[form] for form in competing if form in timed_ours]
        if not mine or (label == BASE and self.name != "adamw"):
            return {"ours": None, "ahead": None}
        return {"ours": mine[0], "ahead": timed[mine[0]]["median_ms"] < timed[label]["median_ms"]}


# Copies of the parameters that must fit into memory for one more candidate: its state, and what it needs in between.
_NEEDED = 5.0


def run_family(
    name: str,
    shapes: Shapes,
    matrix_shapes: Shapes,
    dtype: torch.dtype,
    with_peers: bool,
    repeats: int,
    budget: float,
    time_limit: float,
) -> dict[str, Any]:
    """Time an optimizer of the registry and its peers; shapes are fewer for rules that multiply matrices."""
    theirs = candidates.peers(name, dtype) if with_peers else []
    mine = [candidates.ours(name, form) for form in candidates.forms(name, dtype, theirs)]
    params = Parameters(shapes, dtype)
    # Made on the real shapes, but not yet stepped: no state.
    if candidates.scope(mine[0].make(params)) is Scope.MATRIX:
        params = Parameters(matrix_shapes, dtype)
    params.guard()
    family = Family(name, params, [candidates.base(dtype), *mine, *theirs], time_limit)
    family.start()
    return family.time(repeats, budget)


# Models of the size of adapters: what they are called, their shapes, and by optimizer what a step may take of torch's.
ADAPTERS: dict[str, tuple[Shapes, dict[str, float]]] = {
    "128 adapter matrices": (measure.adapter_shapes(64), {"adamw": 1.05, "adafactor": 1.5}),
    "448 adapter matrices": (measure.adapter_shapes(224), {"adamw": 1.05, "adafactor": 1.5}),
    "256 of 64 x 64": (measure.equal_shapes(256, 64, 64), {"adamw": 1.1}),
    "148 of 8 x 8": (measure.equal_shapes(148, 8, 8), {"adamw": 1.2}),
}


def time_adapters(seconds: float) -> dict[str, Any]:
    """Time ours, as they choose by themselves, in turn with torch's fused AdamW.

    Args:
        seconds: of each model and optimizer.
    """
    rows = []
    for label, (shapes, limits) in ADAPTERS.items():
        for name, limit in limits.items():
            params = Parameters(shapes)
            makers = {"base": candidates.base(torch.float32), "ours": candidates.ours(name, fused=None)}
            optimizers = {key: member.make(params) for key, member in makers.items()}
            for optimizer in optimizers.values():
                for _ in range(3):
                    optimizer.step()
            times = measure.in_turn({key: each.step for key, each in optimizers.items()}, 10_000, seconds)
            base, own = (measure.summary(times[key]) for key in ("base", "ours"))
            ratio = own["median_ms"] / base["median_ms"]
            row = {"model": label, "optimizer": name, "numel": params.numel, "tensors": len(shapes), "limit": limit}
            row |= {"median_ms": own["median_ms"], "base_median_ms": base["median_ms"], "ratio": ratio}
            row |= {"ratio_of_fastest": own["min_ms"] / base["min_ms"], "repeats": own["repeats"]}
            rows.append(row | {"kept": ratio <= limit, "busy": measure.busy(base)})
    console.table(
        f"adapters and small models, {torch.get_num_threads()} thread(s)",
        ("model", "optimizer", "ms", f"{BASE}, ms", "ratio", "of fastest", "limit"),
        [
            [
                *(
                    row["model"],
                    row["optimizer"],
                    measure.digits(row["median_ms"]),
                    measure.digits(row["base_median_ms"]),
                ),
                *(measure.digits(row["ratio"]), measure.digits(row["ratio_of_fastest"]), row["limit"]),
            ]
            for row in rows
        ],
    )
    return {"about": measure.about(), "rows": rows}


def show(dtype: str, families: dict[str, Any]) -> None:
    """Print our side against its limits, then every family."""
    number, verdict = measure.digits, {True: "yes", False: "NO", None: None}
    mine = [row for family in families.values() for row in family["rows"] if row["package"] == candidates.OURS]
    console.table(
        f"hfoptim, compiled, {dtype}",
        ("optimizer", "scope", "bytes", "ms", f"{BASE}, ms", "ratio", "of fastest", "of its floor", "limit", "kept"),
        [
            [
                *(row["candidate"], row["scope"], number(row["bytes_moved"], 1), number(row["median_ms"], 1)),
                *(number(row["base_median_ms"], 1), number(row["ratio"]), number(row["ratio_of_fastest"])),
                *(number(row["of_floor"]), row["limit"], verdict[row["kept"]]),
            ]
            for row in mine
        ],
    )
    for name, family in families.items():
        lines = sorted(family["rows"], key=lambda row: row["median_ms"])
        console.table(
            f"{name}: {family['numel'] / 1e6:.1f} M {dtype} parameters in {family['tensors']} tensors",
            ("optimizer", "form", "median ms", "ratio", "fastest ms", "first step s", "ours is ahead"),
            [
                [
                    *(row["candidate"], row["form"], number(row["median_ms"], 1), number(row["ratio"])),
                    *(number(row["min_ms"], 1), number(row["first_step_s"], 1), verdict[row.get("ahead")]),
                ]
                for row in lines
            ],
        )
        if family["busy"]:
            console.OUT.print(f"the machine was busy: {BASE} took much longer than at its fastest", highlight=False)
        for label, why in family["skipped"].items():
            console.OUT.print(f"skipped {label}: {why}", markup=False, highlight=False)


def main(
    layers: Annotated[int, typer.Option(help="transformer blocks")] = 12,
    vocab: Annotated[int, typer.Option(help="rows of the embedding")] = 50257,
    width: Annotated[int, typer.Option(help="columns of the embedding")] = 768,
    matrix_layers: Annotated[int, typer.Option(help="blocks where rules multiply matrices, which takes seconds")] = 1,
    repeats: Annotated[int, typer.Option(help="timed steps of each candidate")] = 15,
    budget: Annotated[float, typer.Option(help="seconds of a family, after which no further round begins")] = 60.0,
    family: Annotated[list[str] | None, typer.Option(help="an optimizer of the registry; default all")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16; default both")] = None,
    peers: Annotated[bool, typer.Option(help="time the peers' optimizers, too")] = True,
    time_limit: Annotated[float, typer.Option(help="seconds that a first step may take")] = 300.0,
    adapters: Annotated[float, typer.Option(help="seconds of a model of adapters")] = 8.0,
    only_adapters: Annotated[bool, typer.Option(help="time these alone, into the results that are there")] = False,
    threads: Annotated[int, typer.Option(help="threads; 0 leaves torch's choice")] = 0,
    output: Annotated[Path, typer.Option(help="the JSON file to write")] = measure.RESULTS / "step_time.json",
) -> None:
    """Time optimizer steps against their floor and the peers."""
    if threads:
        torch.set_num_threads(threads)
    if only_adapters:
        there = json.loads(output.read_text())
        measure.write(output, "step_time", {**there, "adapters": time_adapters(adapters)})
        return
    shapes = measure.gpt2_shapes(layers, width, vocab)
    fewer = measure.gpt2_shapes(min(layers, matrix_layers), width, min(vocab, 4096))
    able, left_out = candidates.names()
    chosen = [hfoptim.get_optimizer_info(name).name for name in family] if family else able
    result: dict[str, Any] = {"about": measure.about(), "skipped": left_out, "dtypes": {}}
    for each in dtype or measure.DTYPES:
        families: dict[str, Any] = {}
        result["dtypes"][each] = families
        for done, name in enumerate(chosen, start=1):
            console.ERR.print(f"{each}, {done} of {len(chosen)}: {name}", highlight=False)
            families[name] = run_family(name, shapes, fewer, measure.DTYPES[each], peers, repeats, budget, time_limit)
            measure.trim()
            measure.write(output, "step_time", result)
        show(each, families)
    result["adapters"] = time_adapters(adapters)
    measure.write(output, "step_time", result)
    for name, why in left_out.items():
        console.OUT.print(f"not timed: {name}, {why}", markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
