"""python -m hfoptim SCRIPT: an unmodified training script, started in every way scripts are started."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import transformers
from transformers import trainer as trainer_module

from hfoptim.__main__ import main

ROOT = Path(__file__).resolve().parents[2]

# What the script of a user looks like: nothing of hfoptim in it.
SCRIPT = '''
"""A training script like those of transformers' examples."""
import json
import os
import sys

os.environ["HF_HOME"] = os.path.abspath("their-cache")  # scripts do this, and do it before they import transformers

import helper_beside_the_script
import torch
from huggingface_hub import constants
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments


class Text(torch.utils.data.Dataset):
    def __init__(self, args):
        self.args = args  # so the arguments travel to the workers

    def __len__(self):
        return 16

    def __getitem__(self, index):
        assert self.args.optim.value, "the worker cannot read the arguments"
        row = (torch.arange(8) + index) % 16
        return {"input_ids": row, "labels": row}


def main():
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    trainer = Trainer(GPT2LMHeadModel(config), args, train_dataset=Text(args))
    trainer.train()
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    rank = int(os.environ.get("RANK", 0))
    with open(os.path.join(args.output_dir, f"rank-{rank}.json"), "w") as file:
        json.dump(
            {
                "class": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
                "lr": [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry],
                "weights": sum(p.double().sum().item() for p in trainer.model.parameters()),
                "world": args.world_size,
                "argv": sys.argv,
                "path": sys.path[0],
                "name": __name__,
                "cache": constants.HF_HOME,
                "helper": helper_beside_the_script.VALUE,
            },
            file,
        )


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
'''

ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no"]
# fmt: off
LINE = [
    "--output_dir", "out", "--use_cpu", "--report_to", "none", "--disable_tqdm", "True", "--save_strategy", "no",
    "--max_steps", "4", "--per_device_train_batch_size", "2", "--logging_steps", "1",
    "--optim", "lion", "--learning_rate", "1e-3", "--lr_scheduler_type", "inverse_sqrt", "--warmup_steps", "2",
]
# fmt: on


@pytest.fixture
def project(tmp_path):
    """A folder with a training script and a module beside it."""
    folder = tmp_path / "their project"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    (folder / "helper_beside_the_script.py").write_text("VALUE = 42\n")
    return folder


@pytest.fixture
def run(tmp_path):
    """Runs a command in an empty folder; returns the finished process and what each rank wrote."""

    def start(*command, **more):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        wrote = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("out/rank-*.json"))]
        return done, wrote

    return start


def check(results, project, line, world=1):
    assert [result["class"] for result in results] == ["hfoptim.optimizers.lion.Lion"] * world
    for result in results:
        assert result["lr"] == pytest.approx([0.0, 5e-4, 1e-3, 1e-3 * (2 / 3) ** 0.5])
        assert result["world"] == world
        assert result["weights"] == results[0]["weights"]
        assert result["argv"] == [str(project / "train.py"), *line]
        assert result["path"] == str(project)
        assert result["name"] == "__main__"
        assert result["cache"].endswith("their-cache")
        assert result["helper"] == 42


# Of two processes accelerate makes one, without MPI. Two are started by it below.
@pytest.mark.parametrize(
    "starter",
    [
        pytest.param([sys.executable], id="python"),
        pytest.param([*ACCELERATE, "--cpu", "--num_processes", "2"], id="accelerate", marks=pytest.mark.slow),
    ],
)
def test_one_process_with_spawned_data_loader_workers(project, run, starter):
    script = (project / "train.py").read_text()
    # By themselves the names do not bring transformers in: accelerate asks for it without importing it.
    alone = """import importlib.util
import sys
if __name__ == "__main__":
    assert importlib.util.find_spec("transformers")
    assert "transformers" not in sys.modules
"""
    spawn = "def main():\n    torch.multiprocessing.set_start_method('spawn')\n"
    (project / "train.py").write_text(alone + script.replace("def main():\n", spawn))
    line = [*LINE, "--dataloader_num_workers", "1"]
    done, results = run(*starter, "-m", "hfoptim", str(project / "train.py"), *line)
    assert done.returncode == 0, done.stderr
    check(results, project, line)


@pytest.mark.slow  # what the launcher does on two processes is in test_a_module_on_two_processes
def test_two_processes_by_accelerate_launch(project, run):
    launch = [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    line = [*LINE, "--ddp_backend", "gloo"]
    done, results = run(*launch, "-m", "hfoptim", str(project / "train.py"), *line)
    assert done.returncode == 0, done.stderr
    check(results, project, line, world=2)


def test_a_module_on_two_processes(project, tmp_path):
    line = [str(tmp_path / "out") if given == "out" else given for given in LINE] + ["--ddp_backend", "gloo"]
    ranks.run_ranks(*("hfoptim", "-m", "train", *line), ranks=2, output=tmp_path, timeout=300, paths=[project])
    for rank in range(2):
        result = json.loads((tmp_path / "out" / f"rank-{rank}.json").read_text())
        assert result["class"] == "hfoptim.optimizers.lion.Lion"
        assert result["world"] == 2
        assert result["name"] == "__main__"
        assert result["argv"] == [str(project / "train.py"), *line]


@pytest.mark.slow  # the test of one process asks for the same, and for the traceback the last but one in this file
def test_names_come_with_transformers_and_a_mistake_shows_where_it_is(tmp_path, run):
    (tmp_path / "script.py").write_text(
        "import importlib.util, sys\n"
        "assert 'transformers' not in sys.modules\n"
        "assert importlib.util.find_spec('transformers')  # asked for, not imported: accelerate does that\n"
        "assert 'transformers' not in sys.modules\n"
        "from transformers.training_args import OptimizerNames\n"
        "assert OptimizerNames('lion').value == 'lion'\n"
        "raise KeyError('their mistake')\n"
    )
    done, _ = run(sys.executable, "-m", "hfoptim", "script.py")
    assert done.returncode == 1
    assert 'script.py", line 7' in done.stderr
    assert done.stderr.rstrip().endswith("KeyError: 'their mistake'")


@pytest.mark.slow
def test_names_come_with_our_own_module_too(tmp_path, run):
    """It imports transformers while it is not whole itself."""
    (tmp_path / "script.py").write_text(
        "from hfoptim.trainer import OptimizerCallback\n"
        "from transformers.training_args import OptimizerNames\n"
        "assert OptimizerNames('lion').value == 'lion'\n"
    )
    done, _ = run(sys.executable, "-m", "hfoptim", "script.py")
    assert done.returncode == 0, done.stderr


# -- in this process ----------------------------------------------------------------------------------------------


@pytest.fixture
def launch(names, monkeypatch):
    """The launcher's main function; what it changes is put back."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return main


@pytest.mark.parametrize(("body", "code"), [("raise SystemExit(3)", 3), ("import sys; sys.exit('no data')", "no data")])
def test_exit_codes_are_the_scripts(tmp_path, launch, body, code):
    (tmp_path / "script.py").write_text(body)
    with pytest.raises(SystemExit) as stopped:
        launch([str(tmp_path / "script.py")])
    assert stopped.value.code == code


def test_a_script_is_found_from_the_current_folder(tmp_path, launch, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "script.py").write_text("import sys; raise SystemExit([sys.argv, sys.path[0], __file__])")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        launch(["folder/script.py", "--optim", "lion"])
    assert stopped.value.code == [
        ["folder/script.py", "--optim", "lion"],
        str(tmp_path / "folder"),
        "folder/script.py",
    ]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], "no script given"),
        (["missing.py"], "no such script: 'missing.py'"),
        (["compare"], "no such script: 'compare'"),
        (["--optim", "lion"], "unknown option '--optim'; options of the script come after the script"),
        (["-m"], "-m needs the name of a module"),
        (["--token-weights"], "no script given"),
        (["--token-weights", "-m"], "-m needs the name of a module"),
        (["--replace", "--token-weights"], "no script given"),
        (["--replaced", "script.py"], "unknown option '--replaced'"),
    ],
)
def test_wrong_use_is_explained(launch, capsys, command, words):
    with pytest.raises(SystemExit) as stopped:
        launch(command)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert "there is the command `hfoptim`" in error


# A script whose Trainer accumulates the losses of a model that does not divide them.
ACCUMULATING = """
import sys
import torch
from transformers import HfArgumentParser, T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
torch.manual_seed(0)
config = T5Config(vocab_size=16, num_layers=1, num_heads=2, d_model=16, d_kv=8, d_ff=32, dropout_rate=0.0,
                  decoder_start_token_id=0, pad_token_id=0)
labels = [torch.arange(8) + 2, torch.where(torch.arange(8) < 2, 5, -100)] * 4
model = T5ForConditionalGeneration(config)
data = [{"input_ids": torch.arange(8), "labels": row} for row in labels]
trainer = Trainer(model, args, train_dataset=data)
big = {key: torch.stack([row[key] for row in data]) for key in data[0]}
expected = model(**big).loss.item()
trainer.train()
raise SystemExit(trainer.state.log_history[0]["loss"] / expected)
"""
# fmt: off
OPTIONS = [
    "--output_dir", "out", "--use_cpu", "--report_to", "none", "--disable_tqdm", "True", "--save_strategy", "no",
    "--max_steps", "1", "--logging_steps", "1", "--per_device_train_batch_size", "2",
    "--gradient_accumulation_steps", "4", "--optim", "lion",
]
# fmt: on


@pytest.fixture
def accumulating(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "DEFAULT_CALLBACKS", list(trainer_module.DEFAULT_CALLBACKS))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(ACCUMULATING)
    return "script.py"


def test_token_weights_of_a_script_as_it_is(launch, accumulating):
    with pytest.raises(SystemExit) as stopped:
        launch(["--token-weights", accumulating, *OPTIONS])
    assert stopped.value.code == pytest.approx(1.0, abs=1e-3)  # 4.57 rounds the logged loss
    assert sys.argv == [accumulating, *OPTIONS]


@pytest.mark.parametrize("flags", [["--replace"], ["--replace", "--token-weights"], ["--token-weights", "--replace"]])
def test_ours_in_the_place_of_transformers_own_for_a_script_as_it_is(launch, accumulating, messages, flags):
    options = [*OPTIONS[:-1], "grokadamw", "--optim_args", "lamb=1.5"]  # theirs needs the package grokadamw
    with pytest.raises(SystemExit) as stopped:
        launch([*flags, accumulating, *options])
    weighed = "--token-weights" in flags or int(transformers.__version__.split(".")[0]) < 5
    assert (stopped.value.code == pytest.approx(1.0, abs=1e-3)) == weighed
    assert sys.argv == [accumulating, *options]


def test_without_the_flag_they_are_transformers_own(launch, accumulating):
    with pytest.raises(ValueError, match="pip install grokadamw"):
        launch([accumulating, *OPTIONS[:-1], "grokadamw"])


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="T5's forward takes no **kwargs before transformers 5"
)
def test_without_them_the_loss_is_4_times_off_and_that_is_said(launch, accumulating, messages):
    with pytest.raises(SystemExit) as stopped:
        launch([accumulating, *OPTIONS])
    assert stopped.value.code > 3.5
    assert "--token-weights" in messages()[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optim", "lion", "--optim_args", "betas=0.9,0.98"], "betas=(0.9,0.98)"),
        (["--optim", "lion", "--learning_rate", "-1"], "learning_rate=-1.0 is out of range"),
        (["--optim", "lion", "--optim_args", "param_options={'nothing.*': {'lr': 1e-3}}"], "'nothing.*'"),
        (["--lr_scheduler_type", "rex", "--lr_scheduler_kwargs", "p=0.3"], "rex has no option 'p'"),
    ],
)
def test_a_mistake_in_an_argument_ends_with_its_message_alone(launch, accumulating, capsys, options, words):
    with pytest.raises(SystemExit) as stopped:
        launch([accumulating, *OPTIONS, *options])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    last = error.rstrip().splitlines()[-1]
    assert last.startswith("script.py: error: ")
    assert words in last


def test_other_mistakes_keep_their_traceback(tmp_path, launch, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("raise ValueError('their mistake')")
    with pytest.raises(ValueError, match="their mistake"):
        launch(["script.py"])


def test_help(launch, capsys):
    launch(["--help"])
    assert "usage: python -m hfoptim [--token-weights] [--replace] SCRIPT [ARGS]" in capsys.readouterr().out
