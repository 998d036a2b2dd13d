"""A LoRA model of the package peft, and Seq2SeqTrainer: the right groups, the right weights saved, exact resuming."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from resuming import SaveAt, same_end
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

import hfoptim
from hfoptim.trainer import OptimizerCallback


@pytest.fixture
def lora(model):
    """A GPT-2 whose attention and first MLP projection have adapters, with dropout and one trained bias."""

    def make(**given):
        torch.manual_seed(1)
        usual = {"r": 2, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "lora_dropout": 0.1}
        made = get_peft_model(model(), LoraConfig(**{**usual, "bias": "lora_only", "task_type": "CAUSAL_LM", **given}))
        with torch.no_grad():  # B begins as zero, and A then has no gradient
            for name, param in made.named_parameters():
                if "lora_B" in name:
                    param.normal_(std=0.02)
        return made

    return make


# Factors of adapters are matrices of their own where one says so.
CHOSEN = {"param_options": {"*lora_*": {"use_muon": True}}}


def by_name(model):
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


@pytest.mark.parametrize("way", ["callback", "name"])
@pytest.mark.parametrize("name", ["lion", "adamw", "lamb", "adafactor", "muon", "adamw_schedule_free", "adam_mini"])
def test_only_adapters_are_in_the_groups_and_change(names, make_trainer, lora, way, name):
    made = lora()
    before = {n: p.detach().clone() for n, p in made.named_parameters()}
    given = {"learning_rate": 1e-2, "weight_decay": 0.1, "lr_scheduler_type": "constant"}
    chosen = CHOSEN if name == "muon" else {}
    if way == "name":
        spelled = name if name != "adafactor" else "hfoptim_adafactor"
        text = json.dumps(chosen) if chosen else None
        trainer = make_trainer(own={"model": made}, optim=spelled, optim_args=text, **given)
    else:
        trainer = make_trainer(OptimizerCallback(name, **chosen), own={"model": made}, **given)
    trainer.train()
    trained = by_name(made)
    assert {n.split(".")[-2] for n in trained if "lora" in n} == {"default"}
    decays = {p: group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert set(decays) == set(trained.values())
    assert {n: decays[p] for n, p in trained.items()} == {n: 0.0 if n.endswith("bias") else 0.1 for n in trained}
    for n, param in made.named_parameters():
        assert torch.equal(param, before[n]) == (n not in trained), n


def test_muon_takes_the_adapters_matrices_by_choice_only(make_trainer, lora):
    made = lora()
    with pytest.raises(ValueError, match=r"none of the .*lora_A.* use_muon=True"):
        make_trainer(OptimizerCallback("muon", lr=1e-2), own={"model": made}).train()
    trainer = make_trainer(OptimizerCallback("muon", lr=1e-2, **CHOSEN), own={"model": made})
    trainer.train()
    muon = {p: group["use_muon"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {n: muon[p] for n, p in by_name(made).items()} == {n: "lora" in n for n in by_name(made)}


def test_adapters_are_not_for_muon_beside_whole_matrices():
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=16, tie_word_embeddings=False, **sizes))
    adapted = LoraConfig(r=2, target_modules=["embed_tokens", "lm_head", "q_proj"], modules_to_save=["o_proj"])
    made = get_peft_model(base, adapted)
    muon = {n: group["use_muon"] for group in hfoptim.param_groups_muon(made) for n, _ in group["params"]}
    assert muon == {n: "o_proj" in n for n in by_name(made)}


def resume(make, tmp_path, name, **options):
    """Six steps in one go, and three more from the checkpoint that they left after three."""
    given = {"max_steps": 6, "gradient_accumulation_steps": 2, "weight_decay": 0.1, "output_dir": str(tmp_path / "run")}
    constant = name == "adamw_schedule_free"
    given.update({"lr_scheduler_type": "constant"} if constant else {"lr_scheduler_type": "cosine", "warmup_steps": 2})
    whole = make(OptimizerCallback(name, lr=1e-2, **options), SaveAt(3), **given)
    whole.train()
    resumed = make(OptimizerCallback(name, lr=1e-2, **options), **given)
    with torch.no_grad():
        for param in resumed.model.parameters():
            if param.requires_grad:
                param.add_(1.0)  # resuming has to put them back
    resumed.train(resume_from_checkpoint=True)
    same_end(whole, resumed)
    return resumed


@pytest.mark.parametrize("way", ["callback", "name", "part"])
@pytest.mark.parametrize("name", ["lora_rite", "lora_fa", "lookahead_lora_rite"])
def test_optimizers_of_adapters_want_some(names, make_trainer, lora, way, name):
    """A model that was not prepared is refused before it trains with AdamW as a whole, by string as by callback."""
    given = {
        "callback": ((OptimizerCallback(name),), {}),
        "name": ((), {"optim": name}),
        "part": ((OptimizerCallback("adamw", param_options={"*.c_fc.*": {"optimizer": name}}),), {}),
    }
    callbacks, options = given[way]
    with pytest.raises(ValueError, match=r"none of the \d+ parameters is called lora_A .*choose adamw"):
        make_trainer(*callbacks, **options).create_optimizer()
    if way != "part":
        make_trainer(*callbacks, own={"model": lora()}, **options).create_optimizer()


def test_a_class_of_adapters_without_any_warns(make_trainer):
    trainer = make_trainer(own={"optimizer_cls_and_kwargs": (hfoptim.LoRARite, {"lr": 1e-2})})
    with pytest.warns(UserWarning, match="is called lora_A or lora_B"):
        trainer.create_optimizer()


@pytest.mark.parametrize("name", ["lion", "muon", "adafactor", "adamw_schedule_free", "lora_rite", "lora_fa"])
def test_lora_resumes_exactly(make_trainer, lora, tmp_path, name):
    chosen = CHOSEN if name == "muon" else {}
    resume(
        lambda *callbacks, **given: make_trainer(*callbacks, own={"model": lora()}, **given), tmp_path, name, **chosen
    )


def test_the_adapter_saved_is_the_average(make_trainer, lora, model, tmp_path):
    made = lora()
    callback = OptimizerCallback("adamw_schedule_free", lr=1e-2)
    steps = {"save_strategy": "steps", "save_steps": 3, "max_steps": 5}
    trainer = make_trainer(
        callback, own={"model": made}, output_dir=str(tmp_path), lr_scheduler_type="constant", **steps
    )
    trainer.train()
    folder = tmp_path / "checkpoint-3"
    saved = load_file(folder / "adapter_model.safetensors")
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    params = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    keys = {param: name.replace(".default", "") for name, param in made.named_parameters()}
    for index, param in enumerate(params):
        y, z = state["state"][index]["y"], state["state"][index]["z"]
        x = y + (z - y) * (1 - 1 / 0.9)
        assert torch.equal(saved[keys[param]], x)
        assert not torch.equal(x, y)
    loaded = PeftModel.from_pretrained(model(), folder)
    assert any("lora_A" in name for name, _ in loaded.named_parameters())


# -- Seq2SeqTrainer ------------------------------------------------------------------------------------------------


@pytest.fixture
def seq2seq(tmp_path):
    """Makes a Seq2SeqTrainer that generates in its evaluations, with a T5 of about 7000 parameters."""

    def make(*callbacks, dropout=0.1, **given):
        torch.manual_seed(0)
        sizes = {
            "num_layers": 1,
            "num_heads": 2,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "vocab_size": 16,
            "dropout_rate": dropout,
        }
        config = T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
        rows = [{"input_ids": row, "labels": row} for row in (torch.arange(32)[:, None] + torch.arange(6)) % 14 + 2]
        usual = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "predict_with_generate": True,
            "generation_max_length": 8,
            "eval_strategy": "steps",
            "eval_steps": 2,
        }
        return Seq2SeqTrainer(
            model=T5ForConditionalGeneration(config),
            args=Seq2SeqTrainingArguments(**{**usual, **given}),
            train_dataset=rows,
            eval_dataset=rows[:4],
            callbacks=list(callbacks),
        )

    return make


@pytest.mark.parametrize("name", ["lion", "adafactor", "muon", "adamw_schedule_free"])
@pytest.mark.parametrize("way", ["callback", "name"])
def test_generating_evaluations_do_not_disturb_the_training(names, seq2seq, way, name):
    def make(**given):
        given = {"lr_scheduler_type": "constant", "learning_rate": 1e-2, "dropout": 0.0, **given}
        if way == "name":
            return seq2seq(optim=f"hfoptim_{name}", **given)
        return seq2seq(OptimizerCallback(name), **given)

    seen = []

    def generated(prediction):
        seen.append(prediction.predictions)
        return {"length": float(prediction.predictions.shape[1])}

    plain = make(eval_strategy="no")
    busy = make()
    busy.compute_metrics = generated
    for trainer in (plain, busy):
        trainer.train()
    assert len(seen) == 3
    assert [entry["eval_length"] for entry in busy.state.log_history if "eval_length" in entry] == [
        float(tokens.shape[1]) for tokens in seen
    ]
    for one, other in zip(plain.model.parameters(), busy.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.as_tensor(busy.predict(busy.eval_dataset).predictions), torch.as_tensor(seen[-1]))


@pytest.mark.parametrize("name", ["adafactor", "adamw_schedule_free"])
def test_seq2seq_resumes_exactly(seq2seq, tmp_path, name):
    resume(functools.partial(seq2seq, eval_strategy="no"), tmp_path, name)
