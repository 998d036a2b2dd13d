"""transformers' own example scripts, unmodified, started by `python -m hfoptim`.

They run where the environment variable HFOPTIM_TRANSFORMERS_EXAMPLES has the path of transformers' `examples/pytorch`,
of a version that fits the one installed. Models are tiny and untrained, tokenizer and data are made here, nothing is
fetched. Two modules that the scripts import are stood in for, `evaluate` and `nltk`: they fetch metrics and sentence
splitters from the network, and metrics are not what is tested.
"""

from __future__ import annotations

import csv
import json
import os
import pydoc_data.topics
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer

import schedules

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = os.environ.get("HFOPTIM_TRANSFORMERS_EXAMPLES")
NEW = int(transformers.__version__.split(".")[0]) >= 5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        EXAMPLES is None, reason="HFOPTIM_TRANSFORMERS_EXAMPLES is not set: the path of transformers' examples/pytorch"
    ),
]

EVALUATE = """
class Metric:
    def __init__(self, name):
        self.name, self.batches = name, []

    def add_batch(self, predictions, references):
        self.batches += zip(predictions, references)

    def compute(self, predictions=(), references=(), **options):
        equal = [bool(p == r) for p, r in [*self.batches, *zip(predictions, references)]]
        self.batches = []
        return {self.name: sum(equal) / len(equal)}

def load(name, *args, **options):
    return Metric(name)
"""
NLTK = """
class data:
    find = staticmethod(lambda name: name)

def sent_tokenize(text):
    return text.split(". ")
"""


@dataclass
class Script:
    """One of the four scripts with the options it is run with.

    Args:
        path: the script, from the folder of the examples.
        options: its own options, with files from the folder that it is started in.
        optimizer: what chooses the optimizer and its schedule.
        state: names in the state of a parameter, which tell the optimizer.
        lr, schedule, kwargs, warmup: what the logged learning rates are to follow.
        random_batches: its batches are drawn at random while they are read, one ahead of the step. The random numbers
            in a checkpoint are those after that batch, so that a resumed run draws another one: in transformers alone,
            too.
    """

    path: str
    options: str
    optimizer: str
    state: set[str]
    lr: float
    schedule: str
    kwargs: dict[str, float] = field(default_factory=dict)
    warmup: int = 0
    random_batches: bool = False


TEXT = "--train_file train.txt --validation_file valid.txt"
SCRIPTS = {
    "run_clm": Script(
        "language-modeling/run_clm.py",
        f"--model_name_or_path gpt2 {TEXT} --block_size 32",
        "--optim lion --learning_rate 1e-3 --lr_scheduler_type hfoptim_inverse_sqrt --warmup_steps 3",
        {"step", "exp_avg"},
        1e-3,
        "inverse_sqrt",
        warmup=3,
    ),
    "run_mlm": Script(
        "language-modeling/run_mlm.py",
        f"--model_name_or_path bert {TEXT} --max_seq_length 32",
        "--optim ADOPT --learning_rate 1e-3 --optim_args betas=(0.8,0.99) --lr_scheduler_type one_cycle "
        "--lr_scheduler_kwargs pct_start=0.3",
        {"step", "exp_avg", "exp_avg_sq"},
        1e-3,
        "one_cycle",
        {"pct_start": 0.3},
        random_batches=True,
    ),
    "run_glue": Script(
        "text-classification/run_glue.py",
        "--model_name_or_path bert --train_file classes.csv --validation_file classes.csv --max_seq_length 32",
        "--optim hfoptim_adafactor --learning_rate 1e-3 --lr_scheduler_type rex",
        {"step", "exp_avg_sq_row", "exp_avg_sq_col", "RMS"},
        1e-3,
        "rex",
    ),
    "run_summarization": Script(
        "summarization/run_summarization.py",
        "--model_name_or_path t5 --train_file pairs.json --validation_file pairs.json --max_source_length 32 "
        "--max_target_length 16 --predict_with_generate --max_eval_samples 8",
        "--optim adamw_schedule_free --learning_rate 1e-2 --lr_scheduler_type constant --optim_args warmup_steps=8",
        {"step", "z", "exp_avg_sq", "k"},
        1e-2,
        "constant",
    ),
}
STEPS, EVERY = 32, 4
TRAINING = (
    "--do_train --do_eval --use_cpu --report_to none --disable_tqdm True --logging_steps 1 --seed 3 "
    "--per_device_train_batch_size 2 --gradient_accumulation_steps 2"
)
SAVING = f"--max_steps {STEPS} --save_strategy steps --save_steps {EVERY}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, a tokenizer and three tiny models, and what stands in for two modules."""
    folder = tmp_path_factory.mktemp("upstream")
    (folder / "stand_ins").mkdir()
    (folder / "stand_ins" / "evaluate.py").write_text(EVALUATE)
    (folder / "stand_ins" / "nltk.py").write_text(NLTK)
    chapters = list(pydoc_data.topics.topics.values())[:6]
    lines = [line.strip() for chapter in chapters for line in chapter.splitlines() if len(line.split()) > 5]
    (folder / "train.txt").write_text("\n".join(lines[:250]))
    (folder / "valid.txt").write_text("\n".join(lines[250:270]))
    with (folder / "classes.csv").open("w", newline="") as file:
        rows = [{"sentence": line, "label": int(len(line) > 60)} for line in lines[:64]]
        writer = csv.DictWriter(file, ["sentence", "label"])
        writer.writeheader()
        writer.writerows(rows)
    pairs = [{"text": line, "summary": " ".join(line.split()[: 1 + len(line) % 6])} for line in lines[:64]]
    (folder / "pairs.json").write_text("\n".join(map(json.dumps, pairs)))

    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(lines, 400, special_tokens=list(special.values()))
    special |= {"cls_token": "<s>", "sep_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, model_max_length=64, **special)
    size = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    models = {
        "gpt2": transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=64, **size)
        ),
        "bert": transformers.BertForMaskedLM(
            transformers.BertConfig(
                num_hidden_layers=1,
                num_attention_heads=2,
                hidden_size=16,
                intermediate_size=32,
                max_position_embeddings=64,
                **size,
            )
        ),
        "t5": transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                num_layers=1,
                num_heads=2,
                d_model=16,
                d_kv=8,
                d_ff=32,
                dropout_rate=0.0,
                decoder_start_token_id=2,
                **size,
            )
        ),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def start(folder):
    """Starts the launcher with a script; returns the process."""

    def begin(path, words, output, launcher=()):
        paths = os.pathsep.join([str(ROOT), str(folder / "stand_ins"), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        env["HF_HOME"] = str(folder / "cache")
        script = [str(Path(str(EXAMPLES)) / path), *words.split(), "--output_dir", str(output)]
        command = [sys.executable, "-m", "hfoptim", *launcher, *script]
        with (folder / "log").open("w") as log:
            return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, text=True)

    return begin


@pytest.fixture(scope="module")
def run(folder, start):
    """Runs the launcher with a script to its end; returns what it printed."""

    def whole(path, words, output, code=0, launcher=()):
        ended = start(path, words, output, launcher).wait(timeout=600)
        printed = (folder / "log").read_text()
        assert ended == code, printed[-4000:]
        return printed

    return whole


def history(output):
    return json.loads((output / "trainer_state.json").read_text())["log_history"]


def logged(output, key):
    return [entry[key] for entry in history(output) if key in entry and "train_runtime" not in entry]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_and_a_killed_run_resumes_to_the_same_bits(name, folder, start, run):
    script = SCRIPTS[name]
    line = f"{script.options} {TRAINING} {SAVING} {script.optimizer}"
    whole, killed = folder / f"{name}-whole", folder / f"{name}-killed"
    run(script.path, line, whole)

    # The optimizer and the schedule that were asked for.
    curve = schedules.get_curve(script.schedule, script.warmup, STEPS, script.kwargs)
    expected = [script.lr * curve(step) for step in range(STEPS)]
    assert logged(whole, "learning_rate") == pytest.approx(expected, rel=1e-3)  # 4.57 rounds
    saved = torch.load(whole / f"checkpoint-{STEPS}" / "optimizer.pt", weights_only=True)
    states = set().union(*saved["state"].values()) | saved["param_groups"][0].keys() & {"k"}
    assert script.state <= states, states
    losses = logged(whole, "loss")
    assert len(losses) == STEPS
    assert (whole / "eval_results.json").exists()

    process = start(script.path, line, killed)
    while not (killed / f"checkpoint-{2 * EVERY}" / "trainer_state.json").exists():
        assert process.poll() is None, (folder / "log").read_text()[-4000:]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "trainer_state.json").exists(), "it came to its end before it was killed"

    first = killed / f"checkpoint-{EVERY}" / "optimizer.pt"
    written = first.stat().st_mtime_ns
    run(script.path, f"{line} --resume_from_checkpoint True", killed)
    assert first.stat().st_mtime_ns == written, "it began anew"
    assert logged(killed, "learning_rate") == logged(whole, "learning_rate")
    if script.random_batches:
        assert logged(killed, "loss")[: 2 * EVERY] == losses[: 2 * EVERY]
        return
    assert logged(killed, "loss") == losses
    one, other = (load_file(out / "model.safetensors") for out in (whole, killed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_script_without_a_trainer_takes_our_schedules(folder, run):
    # run_clm_no_trainer.py and run_mlm_no_trainer.py have the same argument, but ask accelerate for TPUs by a name that
    # it no longer has.
    line = "--model_name_or_path bert --train_file classes.csv --validation_file classes.csv --max_length 32 --seed 3 "
    line += "--max_train_steps 6 --learning_rate 1e-2 --per_device_train_batch_size 2 --lr_scheduler_type "
    found = {}
    for name in ("linear", "hfoptim_linear", "rex"):
        out = folder / f"no-trainer-{name}"
        run("text-classification/run_glue_no_trainer.py", line + name, out)
        found[name] = load_file(out / "model.safetensors")
    same, other = (
        max((found["linear"][key] - found[name][key]).abs().max().item() for key in found["linear"])
        for name in ("hfoptim_linear", "rex")
    )
    assert same < 1e-6
    assert other > 1e-4


def test_token_weights_make_accumulated_pairs_one_big_batch(folder, run):
    script = SCRIPTS["run_summarization"]
    line = f"{script.options} {TRAINING} --save_strategy no --max_steps 3 --optim hfoptim_sgd --learning_rate 0.1"
    line += " --lr_scheduler_type constant --max_grad_norm 0"
    found, outputs = {}, {}
    for name, rows, windows, launcher in (
        ("big", 8, 1, []),
        ("plain", 2, 4, []),
        ("weighed", 2, 4, ["--token-weights"]),
    ):
        out = folder / f"tokens-{name}"
        sizes = f" --per_device_train_batch_size {rows} --gradient_accumulation_steps {windows}"
        outputs[name] = run(script.path, line + sizes, out, launcher=launcher)
        found[name] = load_file(out / "model.safetensors"), logged(out, "loss")
    weights, losses = found["big"]

    def distance(name):
        return max((weights[key] - found[name][0][key]).abs().max().item() for key in weights)

    assert found["weighed"][1] == pytest.approx(losses, rel=1e-3)
    assert distance("weighed") < 1e-5
    assert distance("plain") > 1e-3
    assert "--token-weights SCRIPT" not in outputs["weighed"] + outputs["big"]
    if NEW:  # T5's forward takes no **kwargs before
        assert found["plain"][1][0] == pytest.approx(4 * losses[0], rel=0.05)
        assert "4 times too large" in outputs["plain"]


def test_a_mistake_ends_a_script_with_its_message_alone(folder, run):
    script = SCRIPTS["run_clm"]
    line = f"{script.options} {TRAINING} --optim lion --optim_args betas=0.9,0.98"
    printed = run(script.path, line, folder / "mistake", code=2)
    assert "Traceback" not in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("run_clm.py: error: optim_args: '0.98' is not of the form name=value")
    assert last.endswith("betas=(0.9,0.98)")
