"""Causal language modelling with the Trainer, in the way of transformers' own example; it knows nothing of hfoptim.

python -m hfoptim examples/run_clm.py --model_type gpt2 --train_file FILE --do_train --output_dir out --optim lion ...
accelerate launch -m hfoptim examples/run_clm.py ...

Datasets, models and tokenizers are names on the hub or local folders. Started again with the same output folder, the
training goes on from its last checkpoint.
"""

import gc
import math
import os
from dataclasses import dataclass, field
from itertools import chain

from accelerate import PartialState
from datasets import DatasetDict, load_dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

END = "<|endoftext|>"


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "Weights to start from; none: at random."})
    model_type: str | None = field(default=None, metadata={"help": "For a model from scratch: gpt2, llama, ..."})
    config_name: str | None = field(default=None, metadata={"help": "Configuration, if it is not the model's own."})
    config_overrides: str | None = field(default=None, metadata={"help": "From scratch only: n_embd=64,n_layer=2,..."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if it is not the model's own."})
    vocab_size: int = field(default=1000, metadata={"help": "Of a new tokenizer, made if there is no name for one."})


@dataclass
class DataTrainingArguments:
    dataset_name: str | None = field(default=None, metadata={"help": "A dataset on the hub or in a folder."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(default=None, metadata={"help": "A text file in place of a dataset."})
    validation_file: str | None = field(default=None, metadata={"help": "A text file to evaluate on."})
    validation_split_percentage: int = field(
        default=5, metadata={"help": "Held out if there is nothing to evaluate on."}
    )
    block_size: int = field(default=128, metadata={"help": "Tokens in a sequence."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Sequences to train on at most."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Sequences to evaluate on at most."})


def load_texts(data: DataTrainingArguments, seed: int) -> DatasetDict:
    if data.dataset_name is not None:
        texts = load_dataset(data.dataset_name, data.dataset_config_name)
    elif data.train_file is not None:
        files = {"train": data.train_file, "validation": data.validation_file}
        texts = load_dataset("text", data_files={k: v for k, v in files.items() if v}, keep_linebreaks=True)
    else:
        raise ValueError("give --dataset_name or --train_file")
    if "validation" not in texts:
        parts = texts["train"].train_test_split(data.validation_split_percentage / 100, shuffle=False, seed=seed)
        texts = DatasetDict(train=parts["train"], validation=parts["test"])
    return texts


def text_column(texts: DatasetDict) -> str:
    columns = texts["train"].column_names
    return "text" if "text" in columns else columns[0]


def load_tokenizer(model: ModelArguments, texts: DatasetDict) -> PreTrainedTokenizerBase:
    name = model.tokenizer_name or model.model_name_or_path
    if name is not None:
        return AutoTokenizer.from_pretrained(name)
    made = ByteLevelBPETokenizer()
    column = text_column(texts)
    made.train_from_iterator((row[column] for row in texts["train"]), model.vocab_size, special_tokens=[END])
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, bos_token=END, eos_token=END)


def load_model(model: ModelArguments, tokenizer: PreTrainedTokenizerBase, block_size: int):
    name = model.config_name or model.model_name_or_path
    if name is not None:
        config = AutoConfig.from_pretrained(name)
    elif model.model_type is not None:
        config = CONFIG_MAPPING[model.model_type](
            vocab_size=len(tokenizer),
            max_position_embeddings=block_size,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        if model.config_overrides:
            config.update_from_string(model.config_overrides)
    else:
        raise ValueError("give --model_name_or_path, --config_name or --model_type")
    if model.model_name_or_path is not None:
        return AutoModelForCausalLM.from_pretrained(model.model_name_or_path, config=config)
    return AutoModelForCausalLM.from_config(config)


def cut(texts: DatasetDict, tokenizer: PreTrainedTokenizerBase, length: int) -> DatasetDict:
    """All texts one after the other, cut into sequences of one length; what is left over is dropped."""
    column = text_column(texts)

    def tokenize(rows):
        return {"input_ids": tokenizer(rows[column])["input_ids"]}

    def group(rows):
        tokens = list(chain.from_iterable(rows["input_ids"]))
        blocks = [tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)]
        return {"input_ids": blocks, "labels": blocks}

    return texts.map(tokenize, batched=True, remove_columns=texts["train"].column_names).map(group, batched=True)


def main() -> None:
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, args = parser.parse_args_into_dataclasses()
    set_seed(args.seed)

    with args.main_process_first(desc="reading the data"):
        texts = load_texts(data_args, args.seed)
        tokenizer = load_tokenizer(model_args, texts)
        blocks = cut(texts, tokenizer, data_args.block_size)
    train, held_out = blocks["train"], blocks["validation"]
    if data_args.max_train_samples is not None:
        train = train.select(range(min(len(train), data_args.max_train_samples)))
    if data_args.max_eval_samples is not None:
        held_out = held_out.select(range(min(len(held_out), data_args.max_eval_samples)))

    trainer = Trainer(
        model=load_model(model_args, tokenizer, data_args.block_size),
        args=args,
        train_dataset=train if args.do_train else None,
        eval_dataset=held_out if args.do_eval else None,
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )
    if args.do_train:
        last = get_last_checkpoint(args.output_dir) if os.path.isdir(args.output_dir) else None
        given = args.resume_from_checkpoint
        result = trainer.train(resume_from_checkpoint=last if given is None else given)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if args.do_eval:
        metrics = trainer.evaluate()
        metrics["perplexity"] = math.exp(metrics["eval_loss"])
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)


if __name__ == "__main__":
    main()
    # First the model, then the processes' connection: gloo can hang when it goes while a DDP model is there.
    gc.collect()
    PartialState().destroy_process_group()
