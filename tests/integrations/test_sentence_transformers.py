# ruff: noqa: E402
"""SentenceTransformerTrainer: its losses' weights and its learning-rate mapping."""

import pytest
import torch

st = pytest.importorskip("sentence_transformers", reason="make test-trainers has it")

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import CosineSimilarityLoss, SoftmaxLoss
from transformers import BertConfig, BertModel, BertTokenizerFast

import hfoptim
from hfoptim.trainer import OptimizerCallback

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *["a", "cat", "dog", "sat", "ran", "on", "the", "mat", "far"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)).save_pretrained(path)
    return path


@pytest.fixture
def make(folder, tmp_path):
    def make(*callbacks, loss="softmax", **given):
        network = SentenceTransformer(str(folder), device="cpu")
        data = {"one": ["a cat sat", "the dog ran"] * 4, "two": ["the mat", "a dog far"] * 4, "label": [0, 1] * 4}
        args = SentenceTransformerTrainingArguments(
            **{
                "output_dir": str(tmp_path),
                "use_cpu": True,
                "report_to": [],
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "save_strategy": "no",
                "lr_scheduler_type": "constant",
                **given,
            }
        )
        made = SoftmaxLoss(network, 16, 2) if loss == "softmax" else CosineSimilarityLoss(network)
        return SentenceTransformerTrainer(
            network, args, train_dataset=Dataset.from_dict(data), loss=made, callbacks=list(callbacks)
        )

    return make


def by_name(trainer, key):
    return {name: group[key] for group in trainer.optimizer.param_groups for name in group["param_names"]}


NAMES = ["lion", "adamw", "muon", "adafactor", "prodigy", "adamw_schedule_free", "lookahead_lion"]


@pytest.mark.parametrize("way", ["callback", "name"])
@pytest.mark.parametrize("name", NAMES)
def test_a_losss_weights_are_trained(make, names, messages, way, name):
    if way == "callback":
        trainer = make(OptimizerCallback(name), learning_rate=1e-2)
    else:
        trainer = make(optim=name if name != "adafactor" else "hfoptim_adafactor", learning_rate=1e-2)
    before = trainer.loss.classifier.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.loss.classifier.weight)
    assert not any("in no group" in message for message in messages())
    if name == "muon":
        muon = by_name(trainer, "use_muon")
        assert {n for n, each in muon.items() if each} == {
            n for n, p in trainer.loss.named_parameters() if p.ndim == 2 and ".encoder." in n
        } | {n for n in muon if n.endswith("pooler.dense.weight")}


@pytest.mark.parametrize("name", [*NAMES, "param_options"])
def test_a_learning_rate_mapping(make, name):
    rates = {"classifier": 5e-3, r"layer\.1\.": 2e-3}
    if name == "prodigy":  # one rate for all
        rates = {"classifier": 1e-2}
    options = {}
    if name == "param_options":
        name, options = "adamw", {"param_options": {"*attention*weight": {"optimizer": "lion", "lr": 1e-2}}}
    trainer = make(OptimizerCallback(name, lr=1e-2, **options), learning_rate_mapping=rates, weight_decay=0.1)
    trainer.train()
    wanted = {}
    for n, _ in trainer.loss.named_parameters():
        wanted[n] = 5e-3 if "classifier" in n else 2e-3 if ".layer.1." in n else 1e-2
    if len(rates) == 1:
        wanted = dict.fromkeys(wanted, 1e-2)
    assert by_name(trainer, "lr") == wanted
    decay = by_name(trainer, "weight_decay")
    assert decay["classifier.weight"] == 0.1
    assert decay["classifier.bias"] == 0.0


def test_an_optimizer_of_the_models_parameters_alone_is_named(make, messages):
    trainer = make()
    trainer.optimizer = hfoptim.AdamW(trainer.model.parameters(), lr=1e-3)
    trainer.train()
    (message,) = [message for message in messages() if "in no group" in message]
    assert "loss.classifier.weight" in message


def test_a_warmup_ratio_is_the_users_or_not(make):
    make(OptimizerCallback("adafactor"), loss="cosine").train()
    with pytest.raises(ValueError, match="a warmup cannot scale"):
        make(OptimizerCallback("adafactor"), warmup_ratio=0.1)
