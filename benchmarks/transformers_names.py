"""What runs by each name that transformers has for optimizers and schedules: tried, and written into docs/trainer.md.

    python benchmarks/transformers_names.py          writes the tables
    python benchmarks/transformers_names.py --check  fails where they are not up to date

Each name trains a tiny model for two steps in a Trainer: as transformers' own, as ours by `hfoptim_<name>`, and with
`enable(replace=True)`. What the machine lacks, a package or a GPU, is said in the table. Run it in `.venv-providers`
(make test-providers), which has bitsandbytes and torchao.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # torchao's steps, which take minutes to compile
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

import hfoptim
from hfoptim.engine import RuleOptimizer, unwrap, unwrap_all
from hfoptim.registry.transformers_names import optimizer_names, schedule_names
from hfoptim.trainer.replacing import REPLACEMENTS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "trainer.md"
BEGIN, END = "<!-- names: begin -->", "<!-- names: end -->"
# Schedules that want more than a number of steps.
_OF_SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-5}},
    "cosine_warmup_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-5}},
    "reduce_lr_on_plateau": {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"},
    "greedy": {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"},
    "warmup_stable_decay": {"lr_scheduler_kwargs": {"num_decay_steps": 1, "num_stable_steps": 1}},
}


_PACKAGES = (
    r"(galore_torch|apollo_torch|lomo_optim|grokadamw|schedulefree|torch-optimi|torch_xla|torch_npu|FusedAdamW|"
    r"torchdistx|bitsandbytes|torchao)"
)


def trained(folder: str, **given: Any) -> Trainer:
    """Two steps of a Trainer."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0)
    tokens = ((torch.arange(16) % 16)[:, None] + 3 * torch.arange(8)) % 16
    data = [{"input_ids": row, "labels": row} for row in tokens]
    quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "log_level": "error"}
    args = TrainingArguments(folder, max_steps=2, learning_rate=1e-3, **quiet, **given)
    trainer = Trainer(GPT2LMHeadModel(config), args, train_dataset=data, eval_dataset=data[:4])
    trainer.train()
    return trainer


def _optimizer(folder: str, name: str) -> str:
    """The class that steps, or why none does."""
    given: dict[str, Any] = {"optim": name}
    if "galore" in name or "apollo" in name:
        given["optim_target_modules"] = ["attn", "mlp"]
    if "layerwise" in name or "lomo" in name:
        given["max_grad_norm"] = 0.0
    try:
        trainer = trained(folder, **given)
    except Exception as error:
        return _reason(error)
    inner = unwrap(trainer.optimizer)
    cls = type((unwrap_all(trainer.optimizer, RuleOptimizer) or [inner])[0])
    return f"`{cls.__module__.split('.')[0]}.{cls.__name__}`"


def _schedule(folder: str, name: str, **options: Any) -> str:
    try:
        trainer = trained(folder, lr_scheduler_type=name, **options)
    except Exception as error:
        return _reason(error)
    made = trainer.lr_scheduler
    return f"`{type(made).__module__.split('.')[0]}`: runs"


def _reason(error: Exception) -> str:
    """What a run is without, from its message."""
    text = " ".join(str(error).split())
    named = re.search(_PACKAGES, text)
    if named:
        return f"needs `{named[1]}`"
    return f"fails here: {type(error).__name__}"


def lines() -> Iterator[str]:
    """The two tables."""
    warnings.simplefilter("ignore")
    theirs = [member.value for member in OptimizerNames if member.value in optimizer_names()]
    schedules = [member.value for member in SchedulerType if member.value in schedule_names()]
    own = set(hfoptim.list_optimizers())
    with tempfile.TemporaryDirectory() as folder:
        hfoptim.disable()
        plain = {name: _optimizer(folder, name) for name in theirs}
        curves = {name: _schedule(folder, name, **_OF_SCHEDULES.get(name, {})) for name in schedules}
        hfoptim.enable(replace=True)
        replaced = {name: _optimizer(folder, name) for name in theirs if name in REPLACEMENTS}
        ours = {name: _optimizer(folder, f"hfoptim_{name}") for name in theirs if _meaning(name, own)}
        our_curves = {name: _schedule(folder, f"hfoptim_{name}", **_OF_SCHEDULES.get(name, {})) for name in schedules}
        hfoptim.disable()
    yield "| `optim=` | transformers' own | with `enable(replace=True)` | ours, by `hfoptim_<name>` |"
    yield "| --- | --- | --- | --- |"
    for name in theirs:
        instead = replaced.get(name, "the same")
        yield f"| `{name}` | {plain[name]} | {instead} | {ours.get(name, '')} |"
    yield ""
    yield "| `lr_scheduler_type=` | transformers' own | ours, by `hfoptim_<name>` |"
    yield "| --- | --- | --- |"
    for name in schedules:
        yield f"| `{name}` | {curves[name]} | {our_curves[name]} |"


def _meaning(name: str, own: set[str]) -> bool:
    """Whether ours has an optimizer that answers to the name."""
    try:
        return hfoptim.get_optimizer_info(name).name in own
    except ValueError:
        return False


def page(text: str) -> str:
    """The page with new tables."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the page would change")
    new = page("\n".join(lines()))
    if parser.parse_args(arguments).check:
        return int(new != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
