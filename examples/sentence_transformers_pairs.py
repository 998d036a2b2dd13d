"""SentenceTransformerTrainer: chapters' beginnings beside what follows them, with an optimizer chosen by a callback:

python examples/sentence_transformers_pairs.py [OPTIMIZER]
"""

import sys
import tempfile

import torch
from data import LENGTH, byte_tokenizer, load_texts, report
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss
from transformers import BertConfig, BertModel

from hfoptim import OptimizerCallback


def tiny_encoder(folder):
    """A BERT of 0.1 M parameters that reads bytes, and a mean over its outputs."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, pad_token_id=0, **sizes)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SentenceTransformer(folder, device="cpu")


def pairs():
    """Each chapter's first bytes, and the ones after them."""
    texts = [text for text in load_texts() if len(text) > 2 * LENGTH]
    return {"anchor": [text[:LENGTH] for text in texts], "positive": [text[LENGTH : 2 * LENGTH] for text in texts]}


with tempfile.TemporaryDirectory() as folder:
    model = tiny_encoder(folder)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=60,
            per_device_train_batch_size=16,
            warmup_steps=6,
            logging_steps=10,
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=Dataset.from_dict(pairs()),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[OptimizerCallback(sys.argv[1] if len(sys.argv) > 1 else "lion", lr=1e-3, schedule="linear")],
    )
    trainer.train()
    report(trainer.optimizer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
