# ruff: noqa: E402
"""TRL's trainers, alone and with an adapter of PEFT; and the defaults of all of its configs."""

import dataclasses
import importlib
import inspect
import pkgutil

import pytest
import torch

trl = pytest.importorskip("trl", reason="make test-trainers has it")
peft = pytest.importorskip("peft", reason="make test-trainers has it")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from hfoptim.trainer import OptimizerCallback

WORDS = ["<pad>", "<unk>", "<s>", "</s>", *["a", "cat", "dog", "sat", "ran", "on", "the", "mat", "far"]]


def configs():
    """Every config of TRL that can be imported here, those of its experimental trainers too."""
    found = {}
    for package in ("trl.trainer", "trl.experimental"):
        root = importlib.import_module(package)
        for info in pkgutil.walk_packages(root.__path__, f"{package}."):
            if info.name.endswith("_config"):
                try:
                    module = importlib.import_module(info.name)
                except ImportError:
                    continue
                for name, kind in vars(module).items():
                    ours = inspect.isclass(kind) and issubclass(kind, TrainingArguments)
                    if ours and kind.__module__ == info.name and not name.startswith("_"):
                        found[name] = kind
    return found


CONFIGS = configs()


def make_args(kind, path, **given):
    usual = {"output_dir": str(path), "use_cpu": True, "bf16": False, "report_to": [], "max_steps": 2}
    required = {f.name for f in dataclasses.fields(kind)} & {"save_strategy"}
    return kind(**{**usual, **dict.fromkeys(required, "no"), "per_device_train_batch_size": 8, **given})


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_configs_own_defaults_are_not_the_users(tmp_path, name):
    try:
        args = make_args(CONFIGS[name], tmp_path)
    except (ImportError, ValueError, TypeError) as error:
        pytest.skip(f"{name} cannot be made here: {error}")
    found = OptimizerCallback("prodigy").choice.resolve(args)
    assert (found.lr, found.lr_given, found.unused) == (1.0, False, ())
    assert OptimizerCallback("adafactor").choice.resolve(args).sets_its_own_lr
    for lr in {5e-5, 2e-5, 1e-6, 1e-3} - {args.learning_rate}:
        given = make_args(CONFIGS[name], tmp_path, learning_rate=lr)
        assert OptimizerCallback("prodigy").choice.resolve(given).lr == lr


def test_there_are_many():
    assert {"SFTConfig", "DPOConfig", "GRPOConfig", "RewardConfig"} <= CONFIGS.keys()


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, bos_token_id=2, eos_token_id=3, **sizes))


def rewarded(completions, **_):
    """How many different words a completion has."""
    return [float(len(set(completion.split()))) for completion in completions]


def make_trainer(tokenizer, path, callback, task, adapter, **given):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM") if adapter else None
    own = {"processing_class": tokenizer, "peft_config": config, "callbacks": [callback] if callback else []}
    given = {"lr_scheduler_type": "constant", "max_length": 16, **given}
    if task == "sft":
        data = Dataset.from_dict({"text": ["a cat sat on the mat", "the dog ran far"] * 4})
        return SFTTrainer(llama(), make_args(SFTConfig, path, **given), train_dataset=data, **own)
    if task == "grpo":
        data = Dataset.from_dict({"prompt": ["a cat", "the dog"] * 4})
        sampling = {"num_generations": 4, "max_completion_length": 4, "learning_rate": 1e-2}
        given = {key: value for key, value in {**sampling, **given}.items() if key != "max_length"}
        args = make_args(GRPOConfig, path, **given)
        return GRPOTrainer(llama(), rewarded, args, train_dataset=data, **own)
    pairs = {"prompt": ["a cat", "the dog"], "chosen": [" sat on", " ran far"], "rejected": [" far", " mat"]}
    data = Dataset.from_dict({key: 4 * values for key, values in pairs.items()})
    reference = None if adapter else llama()
    return DPOTrainer(llama(), reference, make_args(DPOConfig, path, **given), train_dataset=data, **own)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("task", ["sft", "dpo", "grpo"])
@pytest.mark.parametrize("name", ["lion", "muon", "adamw_schedule_free", "adafactor"])
def test_training(tokenizer, tmp_path, messages, name, task, adapter):
    given = {} if name == "adafactor" else {"learning_rate": 1e-2}
    options = {"use_muon": True} if name == "muon" and adapter else {}  # else no matrix would be left to it
    trainer = make_trainer(tokenizer, tmp_path, OptimizerCallback(name, **options), task, adapter, **given)
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    held = {n for group in trainer.optimizer.param_groups for n in group["param_names"]}
    assert held == set(trained)
    assert all("lora" in n for n in held) == adapter
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(before[n], p)}
    assert changed <= held
    assert len(changed) > len(held) / 3
    assert not any("in no group" in message for message in messages())


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_whose_learning_rate(tokenizer, tmp_path, names, messages, task):
    trainer = make_trainer(tokenizer, tmp_path, OptimizerCallback("prodigy"), task, False)
    trainer.train()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1.0}
    assert f"{type(trainer.args).__name__}'s default" in messages()[0]
    trainer = make_trainer(tokenizer, tmp_path, None, task, False, optim="prodigy", learning_rate=5e-5)
    trainer.create_optimizer()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {5e-5}
