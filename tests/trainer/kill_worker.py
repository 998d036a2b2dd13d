"""Trains and is killed at a given point of its second checkpoint, a child process for every point.

    python kill_worker.py FOLDER WAY:POINT [WAY:POINT ...]

A child kills itself with SIGKILL, so nothing is tidied up; what it leaves is in FOLDER/WAY/POINT. The test that runs
this resumes there, with a trainer made by the same function.
"""

from __future__ import annotations

import gc
import io
import os
import shutil
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainerState, TrainingArguments

STEPS, EVERY = 7, 2
KILLED = f"checkpoint-{2 * EVERY}"
# In the order in which they come.
POINTS = (
    "cut model.safetensors",
    "before training_args.bin",
    "cut optimizer.pt",
    "after optimizer.pt",
    "cut scheduler.pt",
    "after scheduler.pt",
    "cut rng_state.pth",
    "before trainer_state.json",
    "cut trainer_state.json",
    "while deleting",
    "between saves",
)


def make_trainer(folder, way, *callbacks):
    """A trainer that saves every other step, the same in every process.

    `way` is how it comes to its optimizer: "callback", "names", "sharded" (the callback; weights in several files),
    "plain" (transformers' SGD, without hfoptim) or "taken over" (ours, for plain's checkpoints).
    """
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0)
    )
    if way == "sharded":
        save = model.save_pretrained
        model.save_pretrained = lambda *args, **kwargs: save(*args, **kwargs, max_shard_size="4KB")
    named = {
        "names": {"optim": "hfoptim_adamw", "lr_scheduler_type": "hfoptim_cosine"},
        "plain": {"optim": "sgd", "lr_scheduler_type": "cosine"},
        "taken over": {"optim": "hfoptim_sgd", "lr_scheduler_type": "hfoptim_cosine"},
    }
    if way in ("callback", "sharded"):
        from hfoptim.trainer import OptimizerCallback

        callbacks = [*callbacks, OptimizerCallback("lion", lr=1e-3, schedule="cosine")]
    args = TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        weight_decay=0.1,
        warmup_steps=2,
        learning_rate=1e-2,
        save_steps=EVERY,
        save_total_limit=1 if "deleting" in str(folder) else None,
        seed=7,
        **named.get(way, {}),
    )
    tokens = (torch.arange(12)[:, None] + 3 * torch.arange(8)) % 16
    text = [{"input_ids": row, "labels": row} for row in tokens]
    return Trainer(model, args, train_dataset=text, callbacks=list(callbacks))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(path, data):
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        die()


class DieBetweenSaves(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == EVERY + 1:
            die()


def arm(point):
    """Have this process die at a point of a checkpoint. After the weights comes training_args.bin."""
    save, write_state = torch.save, TrainerState.save_to_json

    def dying_save(content, path, *args, **kwargs):
        name = os.path.basename(str(path))
        if Path(path).parent.name == KILLED:
            if name == "training_args.bin" and point == "cut model.safetensors":
                weights = sorted(Path(path).parent.glob("model*.safetensors"))[-1]
                if len(list(Path(path).parent.glob("model*"))) > 1:
                    (weights.parent / "model.safetensors.index.json").unlink()  # it comes after them
                write_half(weights, weights.read_bytes())
            if point == f"before {name}":
                die()
            if point == f"cut {name}":
                whole = io.BytesIO()
                save(content, whole)
                write_half(path, whole.getvalue())
        save(content, path, *args, **kwargs)
        if point == f"after {name}" and Path(path).parent.name == KILLED:
            die()

    def dying_write(state, path):
        if Path(path).parent.name == KILLED and "trainer_state.json" in point:
            if point.startswith("before"):
                die()
            write_state(state, path)
            write_half(path, Path(path).read_bytes())
        write_state(state, path)

    def dying_delete(path, *args, **kwargs):
        for file in sorted(Path(path).iterdir())[:3]:
            file.unlink()
        die()

    torch.save, TrainerState.save_to_json = dying_save, dying_write
    if point == "while deleting":
        shutil.rmtree = dying_delete


def main(folder, cases):
    # Those without hfoptim first: from then on it is imported.
    for way, point in sorted(cases, key=lambda case: case[0] != "plain"):
        if way != "plain":
            import hfoptim.trainer

            hfoptim.trainer.enable()
        gc.collect()
        gc.freeze()  # accelerate collects garbage in every training
        child = os.fork()
        if child == 0:
            assert ("hfoptim" in sys.modules) is (way != "plain")
            arm(point)
            between = [DieBetweenSaves()] if point == "between saves" else []
            make_trainer(Path(folder) / way / point, way, *between).train()
            os._exit(3)  # it should not have come so far
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), (way, point, status)
        assert os.WTERMSIG(status) == signal.SIGKILL, (way, point, status)


if __name__ == "__main__":
    main(sys.argv[1], [tuple(case.split(":")) for case in sys.argv[2:]])
