"""Trainings of a Trainer under FSDP2, beside DDP, saved and resumed: `fsdp2_worker.py FOLDER NAME:FORM...`, on each.

Accelerate has FSDP2 for accelerators alone; its state is set by hand here, as `second_pass_worker.Windows` does.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from guarding_worker import Spoiling, make_model
from second_pass_worker import full, make_data
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from hfoptim import OptimizerCallback
from hfoptim.trainer.checkpoints import missing_parts

STEPS, SAVED = 5, 3
RATES = {"prodigy": 1.0}


def train(folder: Path, name: str, sharded: bool, form: str = "", resume: str | None = None) -> dict[str, Any]:
    model = make_model()
    arguments = TrainingArguments(
        str(folder),
        use_cpu=True,
        ddp_backend="gloo",
        report_to=[],
        disable_tqdm=True,
        save_strategy="steps" if form and resume is None else "no",
        save_steps=SAVED,
        logging_steps=1,
        max_steps=STEPS,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        lr_scheduler_type="linear",
    )
    kind = type("Made", (Spoiling,), {"sharded": sharded, "state_dict_type": form or "SHARDED_STATE_DICT"})
    chosen = OptimizerCallback(name, lr=RATES.get(name, 1e-2), weight_decay=0.1)
    trainer = kind(model, arguments, train_dataset=make_data(), callbacks=[chosen])
    trainer.windows = {}
    trainer.train(resume_from_checkpoint=resume)
    assert all(isinstance(param, DTensor) is sharded for param in model.parameters())
    return {
        "weights": [full(param.detach()).flatten().tolist() for param in model.parameters()],
        "norms": [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry],
    }


def measure(folder: Path, name: str, form: str) -> dict[str, Any]:
    straight = train(folder, name, True, form)
    there = folder / f"checkpoint-{SAVED}"
    files = sorted(path.name for path in there.iterdir())
    lacks = missing_parts(there)
    dist.barrier()
    return {
        "fsdp2": straight,
        "resumed": train(folder, name, True, form, str(there)),
        "files": files,
        "lacks": lacks,
    }


def main() -> None:
    folder, cases = Path(sys.argv[1]), [case.split(":") for case in sys.argv[2:]]
    # Accelerate's state, once it is FSDP2's, stays so.
    found = {name: {"ddp": train(folder / name, name, False)} for name, _ in cases}
    for name, form in cases:
        found[name] |= measure(folder / name, name, form)
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    gc.collect()  # a living DDP module can make gloo hang
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
