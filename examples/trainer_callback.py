"""Trainer with an optimizer and a schedule chosen by a callback: python examples/trainer_callback.py"""

import tempfile

from data import collate, load_sequences, report, tiny_gpt2
from transformers import Trainer, TrainingArguments

from hfoptim import OptimizerCallback

with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model=tiny_gpt2(),
        args=TrainingArguments(
            output_dir=folder,
            max_steps=80,
            per_device_train_batch_size=16,
            warmup_steps=8,
            logging_steps=10,
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=load_sequences(),
        data_collator=collate,
        # The callback has to be here: added later, it would come after the Trainer has decided on its optimizer.
        callbacks=[
            OptimizerCallback(
                "lion",
                lr=2e-3,
                weight_decay=0.1,
                betas=(0.95, 0.98),
                schedule="cosine_with_min_lr",
                schedule_kwargs={"min_lr_rate": 0.1},
            )
        ],
    )
    trainer.train()
    report(trainer.optimizer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
