"""The examples for trainers that others build run as examples/README.md says, offline, and their losses fall."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COMMANDS = {  # package, optimizer, the first loss at least, the last at most
    "python examples/lightning_module.py": ("lightning", "lion.Lion", 5.3, 3.6),
    "python examples/lightning_module.py adamw_schedule_free": (
        *("lightning", "schedule_free.AdamWScheduleFree"),
        *(5.3, 3.3),
    ),
    "python examples/lightning_finetuning.py": ("lightning", "lion.Lion", 5.3, 3.3),
    "python examples/trl_sft.py": ("trl", "lion.Lion", 5.2, 3.6),
    "python examples/sentence_transformers_pairs.py": ("sentence_transformers", "lion.Lion", 2.5, 1.6),
}


def run(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict]:
    """What a command says, and what its script has defined."""
    _, script, *arguments = shlex.split(command)
    path = EXAMPLES.parent / script
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    defined = runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out, defined


@pytest.mark.parametrize("command", COMMANDS)
def test_example(command, capsys, monkeypatch):
    package, optimizer, first, last = COMMANDS[command]
    pytest.importorskip(package, reason="make test-trainers has it")
    assert f"| `{command}` |" in (EXAMPLES / "README.md").read_text()
    said, _ = run(command, capsys, monkeypatch)
    match = re.search(r"^hfoptim\.optimizers\.([\w.]+): loss ([\d.]+) -> ([\d.]+)$", said, re.MULTILINE)
    assert match, said
    assert match[1] == optimizer
    assert float(match[2]) > first
    assert float(match[3]) < last
    if "lightning_module" in command:
        validated, again = re.search(r"val_loss ([\d.]+), of the checkpoint's weights ([\d.]+)", said).groups()
        assert validated == again
    if "finetuning" in command:
        rates = re.findall(r"^epoch \d .* lr (.*)$", said, re.MULTILINE)
        assert [len(each.split(", ")) for each in rates] == [1, 2, 2, 2]


@pytest.mark.parametrize("way", ["validation", "epoch", "steps", "by_hand"])
def test_checkpoints_of_the_lightning_callback_hold_the_averages(way, tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning", reason="make test-trainers has it")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    defined = runpy.run_path(str(EXAMPLES / "lightning_module.py"))
    checkpoint = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path,
        "saved",
        **{
            "validation": {"save_on_train_epoch_end": False},
            "epoch": {"save_on_train_epoch_end": True},
            "steps": {"every_n_train_steps": 3},
            "by_hand": {"every_n_epochs": 0},
        }[way],
    )
    sequences = defined["load_sequences"]()[:64]  # 4 batches

    def make(callbacks, steps, path=None):
        lightning.seed_everything(0, verbose=False)
        module = defined["LanguageModel"]("adamw_schedule_free")
        for each in module.modules():
            if isinstance(each, torch.nn.Dropout):
                each.p = 0.0  # random numbers are not in Lightning's checkpoints
        trainer = lightning.Trainer(
            max_steps=steps,
            limit_val_batches=1,
            accelerator="cpu",
            callbacks=callbacks,
            enable_checkpointing=any(each is checkpoint for each in callbacks),
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, defined["loader"](sequences), defined["loader"](sequences), ckpt_path=path)
        return module, trainer

    steps = 3 if way == "steps" else 4
    make([defined["EvaluationWeights"](), checkpoint], 4)
    saved = tmp_path / "saved.ckpt"
    if way == "by_hand":
        _, trainer = make([defined["EvaluationWeights"]()], 4)
        trainer.save_checkpoint(saved)
    held = torch.load(saved, weights_only=True)
    assert held["global_step"] == steps
    assert not any(group["train_mode"] for group in held["optimizer_states"][0]["param_groups"])
    # The averages after as many steps without anything in between.
    plain, other = make([], steps)
    optimizer = other.optimizers[0]
    optimizer.train()
    optimizer.eval()
    assert all(torch.equal(held["state_dict"][name], value) for name, value in plain.state_dict().items())
    if way == "steps":  # within an epoch Lightning begins with other batches
        return
    # A run that goes on from there ends where one does that was not interrupted.
    resumed, _ = make([defined["EvaluationWeights"]()], 8, saved)
    whole, _ = make([defined["EvaluationWeights"]()], 8)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-4, atol=1e-6)
