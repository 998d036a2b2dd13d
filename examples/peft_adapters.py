"""Adapters of PEFT: LoRA+ with any optimizer, in which the factors B learn faster, or LoRA-FA, which freezes A:

python examples/peft_adapters.py
python examples/peft_adapters.py lora_fa
"""

import sys
import tempfile

from data import collate, load_sequences, report, tiny_gpt2
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from hfoptim import OptimizerCallback

WAYS = {
    "lora_plus": OptimizerCallback("adamw", lr=2e-3, param_options={"*lora_B*": {"lr_scale": 16}}),
    "lora_fa": OptimizerCallback("lora_fa", lr=1e-2, lora_scaling=4.0),  # lora_alpha / r
}


def train(model, sequences, callback, folder):
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            max_steps=60,
            per_device_train_batch_size=16,
            warmup_steps=6,
            logging_steps=10,
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=sequences,
        data_collator=collate,
        callbacks=[callback],
    )
    trainer.train()
    return trainer.optimizer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


with tempfile.TemporaryDirectory() as folder:
    model = tiny_gpt2()
    train(model, load_sequences(), OptimizerCallback("lion", lr=2e-3), folder)
    # The same text in capitals, which the model has hardly seen.
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules=["c_attn", "c_fc", "c_proj"]))
    adapted.print_trainable_parameters()
    report(*train(adapted, load_sequences(str.upper), WAYS[sys.argv[1] if len(sys.argv) > 1 else "lora_plus"], folder))
