"""TRL's SFTTrainer, alone or with an adapter of PEFT, with an optimizer chosen by a callback:

python examples/trl_sft.py [OPTIMIZER]
"""

import sys
import tempfile

from data import LENGTH, byte_tokenizer, load_texts, report, tiny_gpt2
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from hfoptim import OptimizerCallback

with tempfile.TemporaryDirectory() as folder:
    trainer = SFTTrainer(
        model=tiny_gpt2(),
        args=SFTConfig(
            output_dir=folder,
            max_steps=80,
            per_device_train_batch_size=16,
            max_length=LENGTH,
            packing=True,
            packing_strategy="wrapped",
            warmup_steps=8,
            logging_steps=10,
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_dict({"text": load_texts()}),
        processing_class=byte_tokenizer(),
        callbacks=[OptimizerCallback(sys.argv[1] if len(sys.argv) > 1 else "lion", lr=2e-3, schedule="cosine")],
    )
    trainer.train()
    report(trainer.optimizer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
