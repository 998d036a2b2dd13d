"""Trainer with an optimizer and a schedule chosen by TrainingArguments, in Python or on the command line:

python examples/training_arguments.py
python examples/training_arguments.py --optim nesterov --learning_rate 0.1 --lr_scheduler_type cosine --max_steps 80
"""

import sys
import tempfile

from data import collate, load_sequences, report, tiny_gpt2
from transformers import HfArgumentParser, Trainer, TrainingArguments

import hfoptim

hfoptim.enable()  # adds the names; has to come before any TrainingArguments

with tempfile.TemporaryDirectory() as folder:
    if len(sys.argv) > 1:
        (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
            ["--output_dir", folder, *sys.argv[1:]]
        )
    else:
        args = TrainingArguments(
            output_dir=folder,
            optim="lion",
            optim_args="betas=(0.95,0.98)",
            learning_rate=2e-3,
            weight_decay=0.1,
            lr_scheduler_type="inverse_sqrt",
            warmup_steps=8,
            max_steps=80,
            per_device_train_batch_size=16,
        )
    args.logging_steps, args.logging_first_step = 10, True
    args.save_strategy, args.report_to = "no", []

    trainer = Trainer(model=tiny_gpt2(), args=args, train_dataset=load_sequences(), data_collator=collate)
    trainer.train()
    report(trainer.optimizer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
