"""Checkpoints of every form of state, on each process: `format_worker.py FOLDER RANK RANKS few|FORM save|resume`.

`save` trains every case, saves it, and goes on; `resume` loads what each number of processes has saved, and takes the
same steps. What is loaded is what was saved, bit for bit, whatever the numbers of processes. So are the steps after it
on as many processes as saved; on others they are where no step depends on a sum over ranks, else but for rounding.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cases import Variant
from cases.entry import Entry
from harness import feed, parameters, set_lr
from tiers import DENSE
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from worker import give, group_of, model_of, second_order, sharded_model

from hfoptim.engine import ELEMENT
from hfoptim.engine.distributed.dtensor import whole_of

# Steps before the checkpoint, and in all.
SAVED, STEPS = 3, 5
# A matrix of codes, rows too short for blocks of their own, kernels, empty parts.
NAMES = ("mlp.large", "short_rows", "conv", "row", "one", "embed.weight")
# dtype of the parameters, and the engine's options.
FORMS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16 state": (torch.float32, {"state_dtype": "bfloat16"}),
    "8bit": (torch.float32, {"state_dtype": "8bit"}),
    "4bit": (torch.float32, {"state_dtype": "4bit"}),
    "8bit stochastic": (torch.float32, {"state_dtype": "8bit", "state_rounding": "stochastic"}),
    "kahan": (torch.bfloat16, {}),
    "nearest": (torch.bfloat16, {"kahan_sum": False}),
    "stochastic rounding": (torch.bfloat16, {"stochastic_rounding": True}),
    "remainder8": (torch.bfloat16, {"master_weights": 8}),
    "remainder16": (torch.bfloat16, {"master_weights": 16}),
    "remainder16 8bit": (torch.bfloat16, {"master_weights": 16, "state_dtype": "8bit"}),
    "kahan 4bit": (torch.bfloat16, {"state_dtype": "4bit"}),
}
# torch's arc tangents and powers in float32 may be another rounding in the last entries of a tensor, which fill no
# vector register.
ROUNDED_BY_PLACE = {"adam_atan2", "madgrad", "mirror_madgrad"}
# Numbers of processes that load what so many have saved.
LOADED_ON = {1: (2,), 2: (1, 2, 4), 4: (2, 4)}
# Optimizers whose states are of every kind: like the parameter, rows and columns, one number, matrices, of the run.
# With `few`, the first in every form and all in this one.
FEW_FORM = "remainder16 8bit"
FEW = ("adam", "adafactor", "lamb", "muon", "soap", "prodigy", "adamw_schedule_free")


@cache
def all_ranks() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


class Case(NamedTuple):
    """An optimizer with options of its own and a form of state."""

    entry: Entry
    variant: Variant
    form: str

    @property
    def key(self) -> str:
        return self.entry.name

    def made(self) -> tuple[Any, nn.Module]:
        """The optimizer and its model: plain on one process, sharded on several."""
        dtype, options = FORMS[self.form]
        names = (*NAMES, "q_proj.weight") if "n_heads" in self.variant.options else NAMES
        alone = dist.get_world_size() == 1
        model = model_of(parameters(names, dtype)) if alone else sharded_model(all_ranks(), names, dtype)
        return self.entry.cls(list(model.named_parameters()), **{**self.variant.options, **options}), model

    def train(self, optimizer: Any, model: nn.Module, steps: range) -> None:
        """Steps with gradients that depend on nothing but the step."""
        mine = dict(model.named_parameters())
        plain = parameters(mine, FORMS[self.form][0])
        for t in steps:
            feed(plain, t)
            give(mine, plain)
            set_lr(optimizer, t, self.variant.lr)
            optimizer.step()


def cases(form: str, which: str) -> list[Case]:
    """Every optimizer that takes sharded parameters, with its first options."""
    few = FEW if form == FEW_FORM else FEW[:1]
    chosen = [entry for entry in DENSE if not second_order(entry) and (which != "few" or entry.name in few)]
    return [Case(entry, next(iter(entry.variants.values())), form) for entry in chosen]


def forms(which: str) -> list[str]:
    return [*FORMS] if which == "few" else [which]


def digests(optimizer: Any, model: nn.Module) -> dict[str, str]:
    """Of all weights and states, each whole."""
    found = {}
    for name, param in model.named_parameters():
        for key, value in {"": param.detach(), **optimizer.state[param]}.items():
            whole = whole_of(value)
            # A copy: a tensor of one entry may have any stride, and is then no bytes to torch.
            data = torch.empty(whole.numel(), dtype=whole.dtype).copy_(whole.reshape(-1)).view(torch.uint8)
            found[f"{name} {key}"] = (
                f"{whole.dtype} {tuple(whole.shape)} {hashlib.sha256(data.numpy().tobytes()).hexdigest()}"
            )
    return found


def groups_of(optimizer: Any) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = optimizer.state_dict()["param_groups"]
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole_of(param.detach()).clone() for name, param in model.named_parameters()}


def content(optimizer: Any, model: nn.Module) -> dict[str, Any]:
    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}


def save(folder: Path, which: str) -> dict[str, list[str]]:
    """A checkpoint of each form; whether it is written while training goes on changes with form and ranks."""
    ranks, saved = dist.get_world_size(), {}
    # Its collectives run beside those of the steps, with which they would be mixed up in one group.
    aside = dist.new_group()
    for form in forms(which):
        made = [(case, *case.made()) for case in cases(form, which)]
        for case, optimizer, model in made:
            case.train(optimizer, model, range(1, SAVED + 1))
        notes: dict[str, dict[str, Any]] = {
            case.key: {"state": digests(optimizer, model), "groups": groups_of(optimizer)}
            for case, optimizer, model in made
        }
        everything = {case.key: content(optimizer, model) for case, optimizer, model in made}
        where = folder / f"{form} {ranks}"
        writing: Any = None
        if ([*FORMS].index(form) + ranks) % 2:
            dcp.save(everything, checkpoint_id=where)
        else:
            writing = dcp.async_save(everything, checkpoint_id=where, process_group=aside)
        for case, optimizer, model in made:
            before = weights(model)
            case.train(optimizer, model, range(SAVED + 1, STEPS + 1))
            notes[case.key] |= {"before": before, "after": weights(model)}
        if writing is not None:
            writing.result()
        if dist.get_rank() == 0:
            torch.save(notes, folder / f"{form} {ranks}.pt")
        saved[form] = [case.key for case, _, _ in made]
    return saved


def resume(folder: Path, which: str) -> dict[str, Any]:
    """What is wrong, and of what is not equal after a change of ranks how far it is."""
    wrong: list[str] = []
    apart: dict[str, tuple[float, float]] = {}
    looked = []
    here = dist.get_world_size()
    saved = [ranks for ranks in LOADED_ON if here in LOADED_ON[ranks]]
    for form, saved_on in product(forms(which), saved):
        if not (folder / f"{form} {saved_on}.pt").exists():
            continue
        notes = torch.load(folder / f"{form} {saved_on}.pt", weights_only=False)
        made = [(case, *case.made()) for case in cases(form, which)]
        everything = {case.key: content(optimizer, model) for case, optimizer, model in made}
        dcp.load(everything, checkpoint_id=folder / f"{form} {saved_on}")
        for case, optimizer, model in made:
            key, note = f"{case.key}, {form}, {saved_on} -> {here}", notes[case.key]
            looked.append(key)
            set_model_state_dict(model, everything[case.key]["model"])
            set_optimizer_state_dict(model, optimizer, everything[case.key]["optimizer"])
            wrong += [f"{key}: {what}" for what in loaded_otherwise(optimizer, model, note)]
            case.train(optimizer, model, range(SAVED + 1, STEPS + 1))
            far = distances(weights(model), note)
            if max(far) > 0.0:
                apart[key] = far
                if saved_on == here or (by_entries(optimizer, model) and case.key not in ROUNDED_BY_PLACE):
                    wrong.append(f"{key}: the steps after it are others, {far}")
    return {"wrong": wrong, "apart": apart, "looked": looked}


def loaded_otherwise(optimizer: Any, model: nn.Module, note: dict[str, Any]) -> Iterator[str]:
    """What of the weights, the states and the groups is not what was saved."""
    got = digests(optimizer, model)
    if got.keys() != note["state"].keys():
        yield f"states {sorted(got.keys() ^ note['state'].keys())}"
    yield from (
        f"{name}: {value[:40]}, saved {note['state'][name][:40]}"
        for name, value in got.items()
        if value != note["state"].get(name, value)
    )
    for mine, saved in zip(groups_of(optimizer), note["groups"], strict=True):
        if mine != saved:
            yield f"group {[(k, mine.get(k), v) for k, v in saved.items() if mine.get(k) != v]}"


def by_entries(optimizer: Any, model: nn.Module) -> bool:
    """Whether no step depends on a sum over ranks, or on a matrix."""
    rules = [optimizer.rule_for(param, group_of(optimizer, param)) for param in model.parameters()]
    return all(rule.scope is ELEMENT and rule.probe is None for rule in rules)


def distances(got: dict[str, Tensor], note: dict[str, Any]) -> tuple[float, float]:
    """As shares of the largest movement: how far the farthest weight is, and the one that 2 % are beyond."""
    before, after = note["before"], note["after"]
    moved = max(float((after[name].float() - before[name].float()).abs().max()) for name in after)
    away = torch.cat([(got[name].float() - after[name].float()).abs().reshape(-1) for name in after])
    assert bool(away.isfinite().all())
    assert moved > 0.0
    return float(away.max()) / moved, float(away.quantile(0.98)) / moved


def main() -> None:
    folder, rank, ranks, which, task = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    store = f"file://{folder}/{task}-{ranks}.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    found = {"save": save, "resume": resume}[task](folder, which)
    (folder / f"{task}-{ranks}.{rank}.json").write_text(json.dumps(found))
    # A gloo thread that still holds a tensor when Python ends aborts the process.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
