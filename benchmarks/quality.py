"""What little state and bfloat16 weights cost in quality: final losses, and errors on the same gradients.

    python benchmarks/quality.py                       # docs/performance.md's tables; a quarter of an hour on two cores
    python benchmarks/quality.py --optim adamw --steps 100 --seeds 1
    python benchmarks/quality.py --add --optim muon --variant float32 --variant "8bit state" --steps 200 --seeds 3

Three parts:

- runs: the job of `hfoptim compare` (model, text, Trainer, schedule) at one learning rate per optimizer, with state and
  weights kept in different ways.
- Kahan: bfloat16 weights with Kahan's term against optimi's, both fed with the same gradients.
- codes: 8-bit and 4-bit state against that of torchao and bitsandbytes, all fed with the same gradients.

The gradients are those of the job's model while it is trained in float32.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import candidates
import console
import measure
import torch
import typer
from peers import installed, load
from torch import Tensor, nn

import hfoptim
from hfoptim.compare.config import CompareConfig
from hfoptim.compare.data import Blocks
from hfoptim.compare.job import prepare, quiet
from hfoptim.engine import storage
from hfoptim.engine.storage.rows import decode_state

# Learning rates at which the job's model trains well.
RATES = {"adamw": 3e-3, "lion": 1e-3, "adan": 1e-2, "ademamix": 3e-3}
# Those of optimizers that are asked for only.
MORE_RATES = {"muon": 1e-2}

# How state and weights are kept: dtype of the model, options of the optimizer.
REFERENCE = "float32"
VARIANTS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    REFERENCE: (torch.float32, {}),
    # The same numbers rounded in another order: how far that alone moves the end of a run.
    "float32, compiled": (torch.float32, {"fused": True}),
    "8bit state": (torch.float32, {"state_dtype": "8bit"}),
    "4bit state": (torch.float32, {"state_dtype": "4bit"}),
    "bfloat16, Kahan": (torch.bfloat16, {}),
    "bfloat16, stochastic rounding": (torch.bfloat16, {"stochastic_rounding": True}),
    "bfloat16, master_weights=16": (torch.bfloat16, {"master_weights": 16}),
    "bfloat16, no compensation": (torch.bfloat16, {"kahan_sum": False}),
}
# These may end so far from the float32 run.
LIMITED, LIMIT = ("8bit state", "bfloat16, Kahan"), 0.005

# For the parts on the same gradients. So small a step is far below the spacing of bfloat16 numbers.
KAHAN_RATE, CODES_RATE = 1e-4, 1e-3


# -- runs ------------------------------------------------------------------------------------------------------------


def train(config: CompareConfig, name: str, variant: str, shared: tuple[Any, Blocks, Blocks]) -> dict[str, Any]:
    """One run of the job; the losses at its end."""
    from transformers import PrinterCallback, Trainer

    from hfoptim.compare.runs import Recorder, training_arguments
    from hfoptim.trainer import OptimizerCallback

    dtype, options = VARIANTS[variant]
    model, train_blocks, held_out_blocks = shared
    lr = config.lr_grid[name][0]
    recorder = Recorder(config, None, lambda step: None)
    schedule: dict[str, Any] = {"schedule": config.schedule, "schedule_kwargs": config.schedule_kwargs}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=copy.deepcopy(model).to(dtype),
            args=training_arguments(config, lr, config.seeds[0], Path(folder)),
            train_dataset=train_blocks,
            eval_dataset=held_out_blocks,
            callbacks=[OptimizerCallback(name, lr=lr, **schedule, **options), recorder],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        record = recorder.record(name, lr, config.seeds[0], options, trainer.state.log_history)
    return {
        "optimizer": name,
        "variant": variant,
        "seed": config.seeds[0],
        "lr": lr,
        "status": record.status,
        "eval_loss": record.eval_loss,
        "train_loss": record.train_loss,
        "state_bytes": record.state_bytes_per_param,
        "seconds": record.wall_seconds,
    }


def summed_up(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each optimizer and variant: means over the seeds, and the difference to float32."""
    rows = []
    for name in dict.fromkeys(run["optimizer"] for run in runs):
        losses = {
            variant: [run["eval_loss"] for run in runs if (run["optimizer"], run["variant"]) == (name, variant)]
            for variant in VARIANTS
        }
        exact = _mean(losses[REFERENCE])
        for variant, each in losses.items():
            if not each:
                continue
            mean = _mean(each)
            off = None if mean is None or exact is None else mean / exact - 1.0
            limited = variant in LIMITED and exact is not None
            kept = (off is not None and abs(off) <= LIMIT) if limited else None
            state = next(run["state_bytes"] for run in runs if (run["optimizer"], run["variant"]) == (name, variant))
            rows.append(
                {"optimizer": name, "variant": variant, "eval_loss": mean, "off": off, "kept": kept}
                | {"state_bytes": state, "seeds": len(each)}
            )
    return rows


def _mean(losses: list[float | None]) -> float | None:
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    return statistics.fmean(known) if known and len(known) == len(losses) else None


# -- the same gradients ----------------------------------------------------------------------------------------------


@dataclass
class Follower:
    """An optimizer with parameters of its own, fed with the gradients of another model's training.

    Args:
        optimizer: its registry's name.
        label: what tables call it.
        params: its parameters.
        steps: its `torch.optim.Optimizer`.
        values: gives the values of a parameter's state by our names; {} for what is not compared.
    """

    optimizer: str
    label: str
    params: list[nn.Parameter]
    steps: Any
    values: Callable[[nn.Parameter], dict[str, Tensor]] = field(default=lambda param: {})

    def step(self, grads: list[Tensor]) -> None:
        """Take a step; the gradients are copied, for some optimizers write into them."""
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad.to(param.dtype, copy=True)
        self.steps.step()

    def weights(self) -> list[Tensor]:
        """The parameters in float32, with what Kahan's term holds of them."""
        states = [self.steps.state[param] for param in self.params]
        rests = [state.get("kahan_comp") for state in states]
        return [
            param.detach().float() + (0.0 if rest is None else rest.float())
            for param, rest in zip(self.params, rests, strict=True)
        ]


Make = Callable[[list[nn.Parameter]], Any]


def follow(
    start: list[Tensor],
    name: str,
    label: str,
    make: Make,
    dtype: torch.dtype = torch.float32,
    values: Callable[[Any, nn.Parameter], dict[str, Tensor]] | None = None,
) -> Follower:
    """A follower that begins at `start`."""
    params = [nn.Parameter(tensor.to(dtype, copy=True)) for tensor in start]
    optimizer = make(params)
    own = {} if values is None else {"values": lambda param: values(optimizer, param)}
    return Follower(name, label, params, optimizer, **own)


def train_with(followers: Iterable[Follower], model: nn.Module, blocks: Blocks, batch_size: int, steps: int) -> None:
    """Train a copy of the model in float32 with AdamW, and hand its gradients to the followers."""
    model = copy.deepcopy(model).train()
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=CODES_RATE, weight_decay=0.0)
    for step in range(steps):
        chosen = [(step * batch_size + i) % len(blocks) for i in range(batch_size)]
        batch = {"input_ids": blocks.tokens[chosen], "labels": blocks.labels[chosen]}
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        grads = [param.grad for param in params if param.grad is not None]
        for follower in followers:
            follower.step(grads)
        optimizer.step()


# What both packages are told, for their defaults differ.
_SAME: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8},
    "lion": {"betas": (0.9, 0.99)},
    "adan": {"betas": (0.98, 0.92, 0.99), "eps": 1e-8},
}


def kahan_followers(start: list[Tensor]) -> list[Follower]:
    """Ours and optimi's for bfloat16 weights, and float32 weights that begin at the same values."""
    start = [tensor.bfloat16() for tensor in start]
    followers = []
    for name, peer in (("adamw", "optimi.AdamW"), ("lion", "optimi.Lion"), ("adan", "optimi.Adan")):
        options = {"lr": KAHAN_RATE, "weight_decay": 0.0, **_SAME[name]}
        ours = partial(hfoptim.get_optimizer_class(name), **options)
        # optimi keeps state in bfloat16, too, and rounds after every operation.
        bare = {"state_dtype": "bfloat16", "state_rounding": "nearest"}
        table: dict[str, tuple[torch.dtype, Make]] = {
            REFERENCE: (torch.float32, ours),
            "hfoptim": (torch.bfloat16, ours),
            "hfoptim, bfloat16 state": (torch.bfloat16, partial(ours, **bare)),
            "hfoptim, no compensation": (torch.bfloat16, partial(ours, kahan_sum=False)),
        }
        if installed("optimi"):
            table["optimi"] = (torch.bfloat16, partial(load(peer), kahan_sum=True, triton=False, **options))
        followers += [follow(start, name, label, make, dtype) for label, (dtype, make) in table.items()]
    return followers


def kahan_rows(followers: list[Follower], start: list[Tensor]) -> list[dict[str, Any]]:
    """How far bfloat16 weights are from float32 ones, and from optimi's."""
    rows = []
    start = [tensor.bfloat16().float() for tensor in start]
    for mine in followers:
        others = {other.label: other for other in followers if other.optimizer == mine.optimizer}
        if mine.label == REFERENCE:
            continue
        exact = others[REFERENCE].weights()
        row = {"optimizer": mine.optimizer, "label": mine.label, "error": _off(mine.weights(), exact, start)}
        if "optimi" in others and mine.label != "optimi":
            pairs = [
                (ours.detach().float(), theirs.detach().float())
                for ours, theirs in zip(mine.params, others["optimi"].params, strict=True)
            ]
            row["largest_difference"] = max(float((a - b).abs().max()) for a, b in pairs)
            equal = sum(int((a == b).sum()) for a, b in pairs)
            row["equal"] = equal / sum(a.numel() for a, _ in pairs)
        rows.append(row)
    return rows


def code_followers(start: list[Tensor]) -> list[Follower]:
    """Coded state of ours, torchao and bitsandbytes, and float32 state."""
    followers = []
    options: dict[str, Any] = {"lr": CODES_RATE, "weight_decay": 0.0}
    for name, peer in (("adamw", "AdamW"), ("lion", "Lion"), ("ademamix", "AdEMAMix")):
        ours: Any = partial(hfoptim.get_optimizer_class(name), **options)
        followers.append(follow(start, name, REFERENCE, ours, values=_our_values))
        for form in candidates.CODED:
            make: Make = partial(ours, state_dtype=form)
            followers.append(follow(start, name, f"hfoptim {form}", make, values=_our_values))
        for package, form in (("torchao", "8bit"), ("torchao", "4bit"), ("bitsandbytes", "8bit")):
            theirs = optional(package, f"{peer}{form}")
            if theirs is not None:
                make = partial(theirs, **options)
                followers.append(follow(start, name, f"{package} {form}", make, values=_VALUES[package]))
    return followers


def optional(package: str, name: str) -> Any:
    """An optimizer of a peer; None where the package is not installed or has none of that name."""
    if importlib.util.find_spec(package) is None:
        return None
    with candidates.quiet():
        return getattr(importlib.import_module(f"{package}.optim"), name, None)


def code_rows(followers: list[Follower], start: list[Tensor]) -> list[dict[str, Any]]:
    """How far coded state, and the weights moved with it, are from those with float32 state."""
    rows = []
    for mine in followers:
        exact = next(f for f in followers if f.optimizer == mine.optimizer and f.label == REFERENCE)
        if mine is exact:
            continue
        # Where no package keeps less than float32, there is nothing to compare.
        coded = [i for i, tensor in enumerate(start) if tensor.numel() >= storage.COMPRESS_FROM]
        states = {}
        for key in exact.values(exact.params[coded[0]]):
            pairs = [
                (mine.values(mine.params[i])[key].float(), exact.values(exact.params[i])[key].float()) for i in coded
            ]
            zero = [torch.zeros_like(b) for _, b in pairs]
            states[key] = _off([a for a, _ in pairs], [b for _, b in pairs], zero)
        weights = _off(*([tensors[i].float() for i in coded] for tensors in (mine.weights(), exact.weights(), start)))
        rows.append({"optimizer": mine.optimizer, "label": mine.label, "states": states, "weights": weights})
    return rows


def _off(values: list[Tensor], exact: list[Tensor], start: list[Tensor]) -> float:
    """|values - exact| over |exact - start|, in the Euclidean norm over all tensors."""
    difference = sum(float((a - b).double().square().sum()) for a, b in zip(values, exact, strict=True))
    moved = sum(float((a - b).double().square().sum()) for a, b in zip(exact, start, strict=True))
    return math.sqrt(difference / moved)


def _our_values(optimizer: Any, param: nn.Parameter) -> dict[str, Tensor]:
    state = optimizer.state[param]
    found = {}
    for name, kind in optimizer.rule_for(param, optimizer.param_groups[0]).state.items():
        kept = storage.kept_as(name, state, kind.signed, param.shape)
        found[name] = decode_state(kept, [state[key] for key in kept.names(name)], param.shape)
    return found


def _torchao_values(optimizer: Any, param: nn.Parameter) -> dict[str, Tensor]:
    state = optimizer.state[param]
    return {key: state[key].dequantize() for key in ("exp_avg", "exp_avg_sq")}


def _bitsandbytes_values(optimizer: Any, param: nn.Parameter) -> dict[str, Tensor]:
    from bitsandbytes.functional import dequantize_blockwise

    state = optimizer.state[param]
    values = [
        dequantize_blockwise(state[f"state{i}"], absmax=state[f"absmax{i}"], code=state[f"qmap{i}"], blocksize=256)
        for i in (1, 2)
        if f"state{i}" in state
    ]
    if values[0].shape != param.shape:  # AdEMAMix: both momenta in one
        return {"exp_avg_fast": values[0][0], "exp_avg_slow": values[0][1], "exp_avg_sq": values[1]}
    return dict(zip(("exp_avg", "exp_avg_sq"), values, strict=False))


_VALUES = {"torchao": _torchao_values, "bitsandbytes": _bitsandbytes_values}


# -- the command -----------------------------------------------------------------------------------------------------


def show(result: Mapping[str, Any]) -> None:
    """Print the three parts."""
    number, verdict = measure.digits, {True: "yes", False: "NO", None: None}

    def percent(share: float | None, places: int = 2) -> str | None:
        return None if share is None else f"{100 * share:.{places}f} %"

    console.table(
        "Held-out loss at the end of the job",
        ("optimizer", "kept in", "eval loss", "against float32", "state, bytes/parameter", "within 0.5 %"),
        [
            [
                *(row["optimizer"], row["variant"], number(row["eval_loss"], 4), percent(row["off"])),
                *(number(row["state_bytes"]), verdict[row["kept"]]),
            ]
            for row in result["summary"]
        ],
    )
    console.table(
        f"bfloat16 weights after {result['gradient_steps']} steps of {KAHAN_RATE:g}, against float32 and optimi's",
        ("optimizer", "kept by", "error / movement", "equal to optimi's", "largest difference"),
        [
            [
                *(row["optimizer"], row["label"], percent(row["error"]), percent(row.get("equal"))),
                None if "equal" not in row else f"{row['largest_difference']:.2g}",
            ]
            for row in result["kahan"]
        ],
    )
    console.table(
        f"Relative error of coded state after {result['gradient_steps']} steps",
        ("optimizer", "state of", "weights", "state"),
        [
            [
                *(row["optimizer"], row["label"], percent(row["weights"])),
                ", ".join(f"{key} {percent(value)}" for key, value in row["states"].items()),
            ]
            for row in result["codes"]
        ],
    )


def _kept(output: Path, names: list[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """What a file has without the runs of some optimizers, which are to be added to it."""
    found: dict[str, Any] = json.loads(output.read_text())
    for name in ("steps", "batch_size", "seq_len", "model", "dataset"):
        if found["config"][name] != options[name]:
            raise typer.BadParameter(f"{name}={options[name]!r}, and {output} has runs with {found['config'][name]!r}")
    found["runs"] = [run for run in found["runs"] if run["optimizer"] not in names]
    others = [each for each in found.get("added", []) if {*each["optimizers"]} - {*names}]
    return {**found, "added": [*others, {"optimizers": names}]}


def main(
    optim: Annotated[list[str] | None, typer.Option(help="optimizers of the runs")] = None,
    lr_grid: Annotated[list[str] | None, typer.Option(help="a learning rate, as in lion=1e-3")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="ways of keeping state and weights; default all")] = None,
    steps: Annotated[int, typer.Option(help="steps of a run")] = 300,
    batch_size: Annotated[int, typer.Option(help="sequences per step")] = 8,
    seq_len: Annotated[int, typer.Option(help="tokens per sequence")] = 64,
    seeds: Annotated[int, typer.Option(help="runs of each kind, with seeds from 0 on")] = 1,
    model: Annotated[str | None, typer.Option(help="a causal language model instead of the small GPT-2")] = None,
    from_scratch: Annotated[bool, typer.Option(help="take only the architecture of --model")] = False,
    dataset: Annotated[str | None, typer.Option(help="another text")] = None,
    gradient_steps: Annotated[int, typer.Option(help="steps of the parts on the same gradients")] = 100,
    threads: Annotated[int, typer.Option(help="threads; 0 leaves torch's choice")] = 0,
    add: Annotated[
        bool, typer.Option(help="run the optimizers of --optim alone, and keep all else that the file has")
    ] = False,
    output: Annotated[Path, typer.Option(help="the JSON file to write")] = measure.RESULTS / "quality.json",
) -> None:
    """Compare losses and errors with state and weights kept in few bits."""
    if threads:
        torch.set_num_threads(threads)
    names = optim or list(RATES)
    rates = [f"{name}={rate:g}" for name, rate in {**RATES, **MORE_RATES}.items() if name in names]
    options: dict[str, Any] = {"optimizers": names, "lr_grid": [*rates, *(lr_grid or [])], "checkpoint_steps": 0}
    options |= {"steps": steps, "batch_size": batch_size, "seq_len": seq_len}
    options |= {"model": model, "from_scratch": from_scratch, "dataset": dataset}
    result: dict[str, Any] = {"runs": [], "gradient_steps": gradient_steps, "kahan": [], "codes": [], "added": []}
    if add:
        result |= _kept(output, names, options)
    runs: list[dict[str, Any]] = result["runs"]
    with quiet():
        for seed in range(seeds):
            config = CompareConfig.from_options(**options, seeds=seed)
            models, train_blocks, held_out_blocks, facts = prepare(config)
            initial = models(seed)
            if add:
                result["added"][-1] |= {"about": measure.about(), "config": config.to_json()}
            else:
                result |= {"about": measure.about(), "config": config.to_json(), **facts}
            for name in config.optimizers:
                for each in variant or VARIANTS:
                    run = train(config, name, each, (initial, train_blocks, held_out_blocks))
                    runs.append(run)
                    result["summary"] = summed_up(runs)
                    loss = "diverged" if run["eval_loss"] is None else f"{run['eval_loss']:.4f}"
                    console.ERR.print(f"{name}, {each}, seed {seed}: {loss}", markup=False, highlight=False)
                    measure.write(output, "quality", result)
        if add:
            show(result)
            return
        start = [param.detach().clone() for param in initial.parameters()]
        kahan, codes = kahan_followers(start), code_followers(start)
        # torchao compiles; the numbers are the same without.
        with torch.compiler.set_stance("force_eager"):
            train_with([*kahan, *codes], initial, train_blocks, batch_size, gradient_steps)
        result |= {"kahan": kahan_rows(kahan, start), "codes": code_rows(codes, start)}
    measure.write(output, "quality", result)
    show(result)


if __name__ == "__main__":
    typer.run(main)
