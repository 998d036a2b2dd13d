"""What a step of an optimizer costs on many GPUs: bytes, collectives and time, on paper, for docs/scaling.md.

    python benchmarks/scale_model.py
    python benchmarks/scale_model.py --model 8B --ranks 64 --optim muon --optim soap
    python benchmarks/scale_model.py --ddp                          # the table of DDP, matrices divided and not

What a step sends, keeps and multiplies is not a formula of ours: the optimizer takes its steps, as rank 0 of so many,
with parameters divided by FSDP2's rule on the device "meta", in a process group that sends nothing. Rank 0 owns the
largest matrices, so its share is the largest. Times follow from `Machine`, a handful of assumed rates.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import console
import measure
import report
import torch
import torch.distributed as dist
import typer
from generated import put_in
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import hfoptim
from hfoptim.engine import local
from hfoptim.factory.memory import as_on_the_first, twin_of

PAGE = report.ROOT / "docs" / "scaling.md"
RANKS = (8, 64, 1024)
# Optimizers, and every how many steps bases (SOAP) or roots (Shampoo) are new. Counted are two steps, with new ones and
# without; what the new ones cost is spread over so many.
OPTIMIZERS: dict[str, tuple[dict[str, Any], int]] = {
    "adamw": ({}, 1),
    "adafactor": ({"relative_step": False, "lr": 1e-3}, 1),
    "lamb": ({}, 1),
    "prodigy": ({}, 1),
    "muon": ({}, 1),
    "soap": ({"precondition_frequency": 2}, 10),
    "distributed_shampoo": ({"precondition_frequency": 2}, 50),
}
# Of these, under DDP, with matrices divided (`distribute_matrices`) and without: models that are whole on a GPU.
DDP = ("muon", "soap", "distributed_shampoo")
DDP_MODELS, DDP_RANKS = ("1B", "8B"), (8, 64)
# Tokens that each rank computes gradients of before a step.
TOKENS = 16_384


@dataclass(frozen=True)
class Machine:
    """Rates of the machine, all assumed: nodes of eight H100, a 400 Gb/s network card for each.

    Args:
        node: GPUs of a node.
        inside, outside: bytes per second, each way, that a GPU sends within its node and out of it.
        start: seconds of a collective before anything moves.
        hop: seconds of a hop; an all-reduce has twice the logarithm of the ranks, an all-gather and a
            broadcast the logarithm, an all-to-all one for each other.
        memory: bytes per second of a GPU's memory.
        products: floating-point operations per second of products of matrices, 16 bits.
        factors: of decompositions of matrices (QR, eigenvectors).
        capacity: bytes of a GPU's memory.
    """

    node: int = 8
    inside: float = 300e9
    outside: float = 40e9
    start: float = 20e-6
    hop: float = 2e-6
    memory: float = 2.8e12
    products: float = 400e12
    factors: float = 2e12
    capacity: float = 80e9

    def rate(self, ranks: int) -> float:
        """Bytes per second between so many ranks."""
        return self.inside if ranks <= self.node else self.outside


class Collective(NamedTuple):
    """One call: its operation, how many ranks take part, the bytes that leave this rank and that reach it."""

    kind: str
    ranks: int
    sent: float
    received: float

    def seconds(self, machine: Machine) -> float:
        """How long it takes."""
        steps = math.ceil(math.log2(self.ranks))
        hops = {"all-to-all": self.ranks - 1, "all-gather": steps, "broadcast": steps}.get(self.kind, 2 * steps)
        return machine.start + hops * machine.hop + max(self.sent, self.received) / machine.rate(self.ranks)


@dataclass
class Cost:
    """What a step costs rank 0.

    Args:
        collectives: of a step.
        products, factors: floating-point operations of a step, as a mean.
        state: bytes that the optimizer keeps.
        parameters: bytes of this rank's parameters.
    """

    collectives: list[Collective]
    products: float
    factors: float
    state: float
    parameters: float

    def sent(self) -> float:
        """Bytes that leave a rank in a step."""
        return sum(each.sent for each in self.collectives)

    def seconds(self, machine: Machine) -> dict[str, float]:
        """Time of a step, by what it is spent on: nothing overlaps."""
        return {
            "links": sum(each.seconds(machine) for each in self.collectives),
            "arithmetic": self.products / machine.products + self.factors / machine.factors,
            # State is read and written, so is the parameter; the gradient is read.
            "memory": (2 * self.state + 3 * self.parameters) / machine.memory,
        }


# -- counting --------------------------------------------------------------------------------------------------------


class Counting(TorchDispatchMode):
    """The collectives that this rank calls meanwhile, and its floating-point operations on matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[Collective] = []
        self.products = self.factors = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, space = func.overloadpacket.__name__, func.namespace
        if space == "_c10d_functional":
            raise NotImplementedError(f"{func}: what several dimensions of a mesh divide is not counted")
        if space == "c10d" and name not in ("monitored_barrier_", "barrier"):
            self.collectives.append(_COLLECTIVES[name](args))
        elif name in _PRODUCTS:
            self.products += _PRODUCTS[name](args)
        elif name in _FACTORS:
            shape = args[0].shape
            self.factors += _FACTORS[name] * math.prod(shape[:-2]) * max(shape[-2:]) * min(shape[-2:]) ** 2
        return func(*args, **(kwargs or {}))


def _reduced(args: Any) -> Collective:
    ranks = dist.ProcessGroup.unbox(args[1]).size()
    # In a ring each rank sends its part of the sum, and then of the result, to the next one.
    sent = 2 * (ranks - 1) / ranks * sum(t.numel() * t.element_size() for t in args[0])
    return Collective("all-reduce", ranks, sent, sent)


def _exchanged(args: Any) -> Collective:
    received, sent, boxed, into, out = args[:5]
    group = dist.ProcessGroup.unbox(boxed)
    others = [r for r in range(group.size()) if r != group.rank()]
    return Collective(
        "all-to-all",
        group.size(),
        float(sum(out[r] for r in others) * sent.element_size()),
        float(sum(into[r] for r in others) * received.element_size()),
    )


def _gathered(args: Any) -> Collective:
    received, sent, boxed = args[:3]
    ranks = dist.ProcessGroup.unbox(boxed).size()
    # In a ring each rank sends its own part, and passes on those of all but the next one.
    moved = float((ranks - 1) * sent.numel() * sent.element_size())
    assert received.numel() == ranks * sent.numel()
    return Collective("all-gather", ranks, moved, moved)


def _broadcast(args: Any) -> Collective:
    (tensor,), group = args[0], dist.ProcessGroup.unbox(args[1])
    size = float(tensor.numel() * tensor.element_size())
    # In a ring each rank but the last one passes it on.
    return Collective("broadcast", group.size(), size, 0.0 if args[2] == group.rank() else size)


_COLLECTIVES: dict[str, Callable[[Any], Collective]] = {
    "allreduce_": _reduced,
    "alltoall_base_": _exchanged,
    "_allgather_base_": _gathered,
    "broadcast_": _broadcast,
}


def _multiplied(first: int) -> Callable[[Any], float]:
    """Operations of a product whose left side is at this place among the arguments."""

    def count(args: Any) -> float:
        left, right = args[first], args[first + 1]
        return 2.0 * left.numel() * right.shape[-1]

    return count


_PRODUCTS = {"mm": _multiplied(0), "bmm": _multiplied(0), "addmm": _multiplied(1), "baddbmm": _multiplied(1)}
# Operations per (longer side) x (shorter side)^2, with vectors; of Householder QR, symmetric QR, Golub-Kahan.
_FACTORS = {"linalg_qr": 4.0, "_linalg_eigh": 9.0, "_linalg_svd": 20.0, "linalg_cholesky_ex": 1 / 3}


def counted(model: nn.Module, name: str, options: Mapping[str, Any], every: int) -> Cost:
    """Let an optimizer take its first step, and count the next one, or the next two where they differ.

    Args:
        model: with parameters as on this rank.
        name: of the optimizer.
        options: its own.
        every: how many steps what only every other of these does is spread over; 1: all do the same.
    """
    optimizer = hfoptim.create_optimizer_v2(model, name, weight_decay=0.1, **options)
    params = [param for group in optimizer.param_groups for param in group["params"]]

    def step() -> None:
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()

    step()
    counts = []
    for _ in range(1 if every == 1 else 2):
        with Counting() as counting:
            step()
        counts.append(counting)
    common, rare = min(counts, key=_work), max(counts, key=_work)
    assert common.collectives == rare.collectives, f"{name}: steps that communicate differently"
    kept = [value for param in params for key, value in optimizer.state[param].items() if key != "step"]
    return Cost(
        common.collectives,
        common.products + (rare.products - common.products) / every,
        common.factors + (rare.factors - common.factors) / every,
        float(sum(map(_size, kept))),
        float(sum(map(_size, params))),
    )


def _work(counting: Counting) -> float:
    return counting.products + counting.factors


def _size(tensor: Tensor) -> int:
    part = local(tensor)
    return part.numel() * part.element_size()


# -- models ----------------------------------------------------------------------------------------------------------


def _llama(width: int, hidden: int, layers: int, heads: int, tied: bool) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128_256,
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            tie_word_embeddings=tied,
        )
    )


def _deepseek() -> nn.Module:
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    return DeepseekV2ForCausalLM(
        DeepseekV2Config(
            vocab_size=102_400,
            hidden_size=5120,
            intermediate_size=12_288,
            moe_intermediate_size=1536,
            num_hidden_layers=60,
            num_attention_heads=128,
            num_key_value_heads=128,
            n_routed_experts=160,
            n_shared_experts=2,
            num_experts_per_tok=6,
            first_k_dense_replace=1,
            q_lora_rank=1536,
            kv_lora_rank=512,
            qk_rope_head_dim=64,
            qk_nope_head_dim=128,
            v_head_dim=128,
        )
    )


class Model(NamedTuple):
    """A model: what it is, how it is made, how many of its parameters a token goes through."""

    what: str
    make: Callable[[], nn.Module]
    active: float


MODELS = {
    "1B": Model("Llama 3.2 1B", lambda: _llama(2048, 8192, 16, 32, tied=True), 1.24e9),
    "8B": Model("Llama 3.1 8B", lambda: _llama(4096, 14_336, 32, 32, tied=False), 8.03e9),
    "70B": Model("Llama 3.1 70B", lambda: _llama(8192, 28_672, 80, 64, tied=False), 70.6e9),
    "236B": Model("DeepSeek-V2, a mixture of experts", _deepseek, 21e9),
}


def predicted(model: str, optimizer: str, ranks: int) -> Cost:
    """What a step of an optimizer costs the first of so many ranks."""
    options, every = OPTIMIZERS[optimizer]
    with as_on_the_first(ranks) as made, put_in():
        with torch.device("meta"):
            whole = MODELS[model].make()
        return counted(twin_of(whole, made), optimizer, options, every)


def predicted_under_ddp(model: str, optimizer: str, ranks: int, divided: bool) -> Cost:
    """The same under DDP, where each rank has all parameters; `divided`: with `distribute_matrices`."""
    options, every = OPTIMIZERS[optimizer]
    with as_on_the_first(ranks), put_in():
        with torch.device("meta"):
            whole = MODELS[model].make()
        return counted(whole, optimizer, {**options, "distribute_matrices": divided}, every)


def rest_of_step(model: str, parameters: float, ranks: int, machine: Machine, passes: int = 3) -> float:
    """Seconds of forward and backward pass, where links and arithmetic overlap.

    Under FSDP2 weights are gathered twice and gradients scattered once, in 16 bits; an all-reduce of DDP's gradients is
    a scatter and a gather. A token takes six operations for each parameter that it goes through.

    Args:
        model: its name.
        parameters: of the whole model.
        ranks: how many share it.
        machine: its rates.
        passes: how often something of the size of the parameters is scattered or gathered.
    """
    moved = passes * 2 * parameters * (ranks - 1) / ranks / machine.rate(ranks)
    return max(moved, 6 * MODELS[model].active * TOKENS / machine.products)


# -- results ---------------------------------------------------------------------------------------------------------


def row_of(model: str, optimizer: str, ranks: int, machine: Machine) -> dict[str, Any]:
    """Everything about one optimizer on one model and so many ranks."""
    cost = predicted(model, optimizer, ranks)
    entries = cost.parameters / torch.float32.itemsize * ranks
    rest = rest_of_step(model, entries, ranks, machine)
    return {"model": model, "optimizer": optimizer, "ranks": ranks, **_numbers(cost, rest, machine)}


def rows_of_ddp(model: str, optimizer: str, ranks: Sequence[int], machine: Machine) -> list[dict[str, Any]]:
    """The same under DDP, with all matrices on each rank and divided.

    Owners follow from sizes, and what a matrix costs does not: of state and arithmetic it is the first rank's or, where
    that is more, the mean of all ranks.
    """
    rows = []
    undivided = predicted_under_ddp(model, optimizer, ranks[0], divided=False)
    for count in ranks:
        rest = rest_of_step(model, undivided.parameters / torch.float32.itemsize, count, machine, passes=2)
        first = predicted_under_ddp(model, optimizer, count, divided=True)
        for name in ("products", "factors", "state"):
            setattr(first, name, max(getattr(first, name), getattr(undivided, name) / count))
        for divided, cost in ((False, undivided), (True, first)):
            known = {"model": model, "optimizer": optimizer, "ranks": count, "divided": divided}
            rows.append({**known, **_numbers(cost, rest, machine)})
    return rows


def _numbers(cost: Cost, rest: float, machine: Machine) -> dict[str, Any]:
    seconds = cost.seconds(machine)
    step = sum(seconds.values())
    return {
        "collectives": len(cost.collectives),
        "sent_bytes": cost.sent(),
        "state_bytes": cost.state,
        # With the gradient, which lies there while the step is taken.
        "held_bytes": cost.state + 2 * cost.parameters,
        "seconds": seconds,
        "step_seconds": step,
        "share": step / (step + rest),
    }


_COLUMNS = ["collectives", "sent, MB", "state, GB", "held, GB", "links, ms", "arithmetic, ms", "memory, ms"]
_COLUMNS += ["step, ms", "share of a training step"]


def _cells(row: Mapping[str, Any], machine: Machine) -> list[Any]:
    return [
        *(row["collectives"], _short(row["sent_bytes"] / 1e6), _short(row["state_bytes"] / 1e9)),
        _short(row["held_bytes"] / 1e9) + (" (too much)" if row["held_bytes"] > machine.capacity else ""),
        *(_short(1e3 * row["seconds"][part]) for part in ("links", "arithmetic", "memory")),
        _short(1e3 * row["step_seconds"]),
        report.percent(row["share"], 1),
    ]


def page_of_ddp(rows: Sequence[Mapping[str, Any]], machine: Machine) -> str:
    """The table of DDP."""
    return report.table(
        ["model", "optimizer", "GPUs", "matrices", *_COLUMNS],
        [
            [
                *(row["model"], row["optimizer"], row["ranks"], "divided" if row["divided"] else "all on each"),
                *_cells(row, machine),
            ]
            for row in rows
        ],
    )


def page(rows: Sequence[Mapping[str, Any]], machine: Machine) -> dict[str, str]:
    """The tables of docs/scaling.md by name."""
    found = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        cells = [[row["optimizer"], row["ranks"], *_cells(row, machine)] for row in own]
        found[f"scale-{model}"] = report.table(["optimizer", "GPUs", *_COLUMNS], cells)
    return found


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def main(
    model: Annotated[list[str] | None, typer.Option(help="Of 1B, 8B, 70B, 236B; default all.")] = None,
    ranks: Annotated[list[int] | None, typer.Option(help="How many GPUs; default 8, 64 and 1024.")] = None,
    optim: Annotated[list[str] | None, typer.Option(help="Optimizers; default all of the page.")] = None,
    ddp: Annotated[bool, typer.Option("--ddp", help="The table of DDP in place of those of FSDP2.")] = False,
    output: Annotated[Path | None, typer.Option(help="The results; default the project's.")] = None,
) -> None:
    """Count, and write docs/scaling.md's tables if nothing is left out."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    machine, rows = Machine(), []
    output = output or measure.RESULTS / ("scale_model_ddp.json" if ddp else "scale_model.json")
    if ddp:
        for which in model or DDP_MODELS:
            for name in optim or DDP:
                rows += rows_of_ddp(which, name, ranks or DDP_RANKS, machine)
                console.OUT.print(rows[-2:])
        measure.write(output, "scale_model_ddp", {"about": measure.about(), "machine": asdict(machine), "rows": rows})
        if not (model or ranks or optim):
            PAGE.write_text(report.fill(PAGE.read_text(), "scale-ddp", page_of_ddp(rows, machine)))
        return
    for which in model or MODELS:
        for name in optim or OPTIMIZERS:
            for count in ranks or RANKS:
                rows.append(row_of(which, name, count, machine))
                console.OUT.print(rows[-1])
    measure.write(output, "scale_model", {"about": measure.about(), "machine": asdict(machine), "rows": rows})
    if not (model or ranks or optim):
        text = PAGE.read_text()
        for name, body in page(rows, machine).items():
            text = report.fill(text, name, body)
        PAGE.write_text(text)


if __name__ == "__main__":
    typer.run(main)
