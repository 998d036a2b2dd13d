"""Optimizers of a folder, of another distribution and of a running program are known to the Trainer."""

from __future__ import annotations

import pytest
from ranks import run_code
from transformers import HfArgumentParser, TrainingArguments

import hfoptim
from hfoptim import registry
from hfoptim.trainer import OptimizerCallback

SOURCE = '''
from hfoptim.engine import Name, hyper
from hfoptim.optimizers.lion import Lion


class {cls}(Lion):
    """One of {cls}."""

    names = (Name("{name}", paper="https://example.org"),)
    speed: float = hyper(1.0, "how fast")
'''
SCRIPT = """
import sys
from typer.testing import CliRunner
import hfoptim
from hfoptim import optimizers
optimizers.__path__.append(sys.argv[1])
assert {"jaguar", "puma"} <= set(hfoptim.list_optimizers())
from hfoptim.cli import app
listed = CliRunner().invoke(app, ["list"]).output
for name, cls in (("jaguar", "Jaguar"), ("puma", "Puma")):
    assert f"One of {cls}" in listed, listed
    told = CliRunner().invoke(app, ["info", name]).output
    assert "speed" in told and "how fast" in told and "https://example.org" in told, told
from transformers import TrainingArguments
from hfoptim.trainer import enable
enable()
for name in ("jaguar", "hfoptim_puma", "PUMA"):
    args = TrainingArguments("out", optim=name, optim_args="speed=2", report_to=[])
    assert args.optim.value == name.lower()
try:
    TrainingArguments("out", optim="puma", optim_args="sped=2", report_to=[])
except ValueError as error:
    assert "'speed'" in str(error)
else:
    raise AssertionError("taken")
print("done")
"""


def test_a_file_and_a_distribution_are_known_everywhere(tmp_path):
    folder, site = tmp_path / "folder", tmp_path / "site"
    folder.mkdir()
    (folder / "jaguar.py").write_text(SOURCE.format(cls="Jaguar", name="jaguar"), encoding="utf-8")
    declared = site / "pumas-1.0.dist-info"
    declared.mkdir(parents=True)
    (site / "pumas.py").write_text(SOURCE.format(cls="Puma", name="puma"), encoding="utf-8")
    (declared / "METADATA").write_text("Metadata-Version: 2.1\nName: pumas\nVersion: 1.0\n", encoding="utf-8")
    (declared / "entry_points.txt").write_text("[hfoptim.optimizers]\npuma = pumas:Puma\n", encoding="utf-8")
    said = run_code(SCRIPT, str(folder), folder=tmp_path, paths=[site], COLUMNS="200")
    assert said.endswith("done\n")


@pytest.fixture
def registered():
    class Late(hfoptim.Lion):
        """Registered when names were enabled already."""

        names = (hfoptim.Name("late_one"),)

    yield hfoptim.register(Late)
    registry.known_optimizers.cache_clear()


def test_a_class_registered_later_is_known_at_once(make_trainer, inner, names, registered, tmp_path):
    assert TrainingArguments(str(tmp_path), optim="Late-One", report_to=[]).optim.value == "late_one"
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--optim", "hfoptim_late_one", "--report_to", "none"]
    )
    assert args.optim in (type(args.optim)("late_one"), "hfoptim_late_one")
    trainer = make_trainer(OptimizerCallback("late_one"))
    trainer.create_optimizer()
    assert type(inner(trainer)) is registered
