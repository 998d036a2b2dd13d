"""Learning rates by layer, options and optimizers by parameter name: by the callback and by optim_args."""

import copy
import json
import math
import pickle

import pytest
import torch
from resuming import parameters, same
from test_resume_is_exact import run_both
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertConfig, BertForSequenceClassification, GPT2LMHeadModel, Trainer

import hfoptim
from hfoptim.trainer import OptimizerCallback
from hfoptim.trainer.options import parse_options

SEVERAL = {"lm_head.*": {"optimizer": "adamw", "lr": 1e-2, "betas": (0.8, 0.9)}, "*.ln_*": {"weight_decay": 0.3}}


@pytest.fixture
def untied(model):
    """The tiny GPT-2 with two blocks and a head of its own, without dropout."""

    def make(seed=0):
        config = copy.deepcopy(model().config)
        config.tie_word_embeddings = False
        config.n_layer = config.num_hidden_layers = 2
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)

    return make


@pytest.fixture(params=["callback", "json", "pairs", "mapping"])
def make(request, make_trainer, names, untied):
    """Makes a Trainer whose optimizer is chosen through the callback or, in each of its forms, through optim_args."""

    def with_optimizer(name, options, **given):
        own = {"model": untied()}
        if request.param == "callback":
            return make_trainer(OptimizerCallback(name, **options), own=own, **given)
        text = {
            "json": lambda: json.dumps(options),
            "pairs": lambda: ",".join(f"{key}={value!r}" for key, value in options.items()),
            "mapping": lambda: options,
        }[request.param]()
        return make_trainer(optim=f"hfoptim_{name}", optim_args=text, own=own, **given)

    return with_optimizer


def found(optimizer, *keys):
    """Parameter name -> what its group has under the keys."""
    return {name: tuple(g.get(k) for k in keys) for g in optimizer.param_groups for name in g["param_names"]}


def depth_of(name):
    part = name.split(".")
    return int(part[2]) + 1 if ".h." in name else (0 if part[1] in ("wte", "wpe") else 3)


def test_the_groups_are_as_asked_for(make, inner):
    options = {
        "lr": 1e-3,
        "weight_decay": 0.1,
        "layer_decay": 0.5,
        "head_lr": 1e-2,
        "param_options": {"*.ln_1.*": {"weight_decay": 0.3, "betas": (0.5, 0.6)}, "*.wpe.*": {"lr_scale": 4}},
    }
    trainer = make("adamw", options)
    trainer.create_optimizer()
    expected = {}
    for name, _ in trainer.model.named_parameters():
        lr = 1e-2 if name == "lm_head.weight" else 1e-3 * 0.5 ** (3 - depth_of(name)) * (4 if ".wpe." in name else 1)
        # transformers decays all but biases and layer norms.
        decay = 0.1 if name.endswith("weight") and ".ln_" not in name else 0.0
        special = ".ln_1." in name
        expected[name] = (lr, 0.3 if special else decay, (0.5, 0.6) if special else (0.9, 0.999))
    assert found(inner(trainer), "lr", "weight_decay", "betas") == expected


def test_a_matcher_says_which_layer_a_parameter_is_of(make, inner):
    matcher = {"blocks": [(r"^transformer\.h\.(\d+)", None), (r"^transformer\.ln_f", (99999,))]}
    trainer = make("lion", {"lr": 1e-3, "layer_decay": 0.5, "group_matcher": matcher})
    trainer.create_optimizer()
    for name, (lr,) in found(inner(trainer), "lr").items():
        above = 0 if "te." in name or "pe." in name or "head" in name else 2 - min(max(depth_of(name) - 1, 0), 1)
        assert lr == 1e-3 * 0.5**above, name


def test_mistakes_about_layers_are_refused_early(names, arguments):
    for options, words in (
        ({"group_matcher": {"blocks": "^h"}}, r"group_matcher .* for layer_decay, which is not given"),
        ({"layer_decay": 0.5, "group_matcher": {"blocks": "(("}}, r"'\(\(' is no regular expression"),
        ({"layer_decay": 0.5, "group_matcher": 3}, r"group_matcher=3 is a int, expected a mapping"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            OptimizerCallback("lion", **options)
        with pytest.raises((ValueError, TypeError), match=words):
            arguments(optim="hfoptim_lion", optim_args=json.dumps(options))


def test_several_optimizers_train_as_by_hand(make, make_trainer, inner, untied):
    trainer = make("muon", {"lr": 1e-3, "layer_decay": 0.5, "param_options": SEVERAL}, max_steps=3, max_grad_norm=0)
    trainer.train()
    combined = inner(trainer)
    assert isinstance(combined, hfoptim.CombinedOptimizer)
    assert [type(one) for one in combined.optimizers] == [hfoptim.Muon, hfoptim.Adam]
    model = untied()
    body = []
    for name, param in model.named_parameters():
        if name == "lm_head.weight":
            continue
        inside = ".h." in name and param.ndim > 1
        decay = 0.3 if ".ln_" in name else 0.1 if name.endswith("weight") else 0.0
        lr = 1e-3 * 0.5 ** (3 - depth_of(name))
        body.append({"params": [(name, param)], "lr": lr, "weight_decay": decay, "use_muon": inside})
    muon = hfoptim.Muon(body, adjust_lr_fn="match_rms_adamw")
    adamw = hfoptim.get_optimizer_class("adamw")(model.lm_head.parameters(), lr=1e-2, betas=(0.8, 0.9))
    by_hand = hfoptim.CombinedOptimizer([muon, adamw])
    own = {"model": model, "optimizers": (by_hand, LambdaLR(by_hand, lambda t: 1 - t / 3))}
    other = make_trainer(own=own, max_steps=3, max_grad_norm=0)
    other.train()
    same(parameters(trainer), parameters(other))
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (trainer, other)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.5}])
def test_a_trainers_own_choice_of_what_is_decayed(make_trainer, inner, untied, name, options):
    class Own(Trainer):
        def get_decay_parameter_names(self, model):
            return ["lm_head.weight"]

    callback = OptimizerCallback(name, lr=1e-3, weight_decay=0.1, **options)
    trainer = make_trainer(callback, trainer_class=Own, own={"model": untied()})
    trainer.create_optimizer()
    decayed = [p for group in inner(trainer).param_groups if group["weight_decay"] for p in group["params"]]
    assert len(decayed) == 1
    assert decayed[0] is trainer.model.lm_head.weight


def test_the_schedule_multiplies_every_learning_rate(make_trainer, untied, watcher):
    """Warm-up and cosine over all groups of two optimizers, against the curve; the log shows the unscaled one."""
    options = {"layer_decay": 0.5, "head_lr": 1e-2, "param_options": {"*.bias": {"optimizer": "lion", "lr": 5e-4}}}
    callback = OptimizerCallback("adamw", lr=1e-3, schedule="cosine", **options)
    trainer = make_trainer(callback, watcher, own={"model": untied()}, max_steps=6, warmup_steps=2, logging_steps=1)
    trainer.train()
    curve = [0.0, 0.5, *(0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(4))]
    initial = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    assert initial[0] == 1e-3
    assert {1e-2, 5e-4, 1e-3 * 0.5**3} <= set(initial)
    for t, rates in enumerate(watcher.applied):
        assert rates == pytest.approx([lr * curve[t] for lr in initial])
    assert watcher.logged == pytest.approx([1e-3 * value for value in curve])


@pytest.mark.parametrize("several", [False, True])
def test_it_resumes_exactly(make_trainer, tmp_path, untied, several):
    patterns = {"*.ln_*": {"weight_decay": 0.3, "lr": 1e-4}, "*.h.0.*": {"betas": (0.5, 0.6)}}
    if several:
        patterns |= {"lm_head.*": {"optimizer": "lion", "lr": 1e-3}, "*.h.1.*": {"optimizer": "muon"}}

    def callbacks():
        options = {"layer_decay": 0.8, "head_lr": 3e-3, "param_options": patterns}
        return [OptimizerCallback("adamw", lr=1e-3, schedule="cosine", **options)]

    def make(*callbacks, **given):
        return make_trainer(*callbacks, own={"model": untied()}, **given)

    whole, *_ = run_both(make, tmp_path, callbacks, warmup_steps=1)
    rates = {group["initial_lr"] for group in whole.optimizer.param_groups}
    assert len(rates) > 3


def test_it_resumes_exactly_by_optim_args(names, make_trainer, tmp_path, untied):
    def make(*callbacks, **given):
        return make_trainer(*callbacks, own={"model": untied()}, **given)

    args = json.dumps({"layer_decay": 0.8, "param_options": {"*.bias": {"optimizer": "lion"}}})
    run_both(make, tmp_path, list, optim="hfoptim_sgd", optim_args=args, learning_rate=1e-2, lr_scheduler_type="cosine")


def test_a_classifiers_head(make_trainer, inner, text):
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=16,
        max_position_embeddings=8,
    )
    model = BertForSequenceClassification(config)
    model.bert.embeddings.requires_grad_(False)
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"][0] % 2} for row in text]
    own = {"model": model, "train_dataset": data, "eval_dataset": data[:4]}
    before = copy.deepcopy(model.state_dict())
    trainer = make_trainer(OptimizerCallback("lion", lr=1e-4, layer_decay=0.5, head_lr=1e-2), own=own)
    trainer.train()
    optimizer = inner(trainer)
    initial = {name: lr for name, (lr,) in found(optimizer, "initial_lr").items()}
    assert set(initial) == {name for name in before if not name.startswith("bert.embeddings")}
    for name, lr in initial.items():
        depth = int(name.split(".")[3]) + 1 if ".layer." in name else 3
        assert lr == (1e-2 if name.startswith("classifier") else 1e-4 * 0.5 ** (3 - depth)), name
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, before["bert.embeddings.word_embeddings.weight"])
    # Lion's steps are as long as the learning rate.
    assert (model.classifier.weight - before["classifier.weight"]).abs().max() > 1e-2


def test_another_optimizer_takes_the_arguments_that_were_changed_and_else_its_own(
    make_trainer, inner, untied, messages
):
    def groups(lion=None, **given):
        callback = OptimizerCallback("sgd", lr=0.1, param_options={"*.h.*": {"optimizer": "lion", **(lion or {})}})
        trainer = make_trainer(callback, own={"model": untied()}, **given)
        trainer.create_optimizer()
        return {
            name: found(inner(trainer), "lr", "weight_decay", "betas")[f"transformer.h.0.{name}"]
            for name in ("mlp.c_fc.weight", "mlp.c_fc.bias")
        }

    assert groups() == {"mlp.c_fc.weight": (1e-4, 0.0, (0.9, 0.99)), "mlp.c_fc.bias": (1e-4, 0.0, (0.9, 0.99))}
    assert any("so lion uses its own: 0.0001" in message for message in messages())
    changed = {"learning_rate": 1e-3, "weight_decay": 0.2, "adam_beta1": 0.8}
    expected = {"mlp.c_fc.weight": (1e-3, 0.2, (0.8, 0.99)), "mlp.c_fc.bias": (1e-3, 0.0, (0.8, 0.99))}
    assert groups(**changed) == expected
    given = groups({"lr": 1e-2, "weight_decay": 0.3}, **changed)
    assert given == {"mlp.c_fc.weight": (1e-2, 0.3, (0.8, 0.99)), "mlp.c_fc.bias": (1e-2, 0.3, (0.8, 0.99))}


def test_the_training_and_evaluation_weights_of_one_of_several(make_trainer, inner, untied, messages):
    options = {"*.h.*": {"optimizer": "adamw_schedule_free", "lr": 1e-2}}
    trainer = make_trainer(OptimizerCallback("adamw", lr=1e-2, param_options=options), own={"model": untied()})
    trainer.train()
    assert any("AdamWScheduleFree takes the place of a schedule" in message for message in messages())
    free = inner(trainer).optimizers[1]
    assert {group["train_mode"] for group in free.param_groups} == {False}
    trained = copy.deepcopy(trainer.model.state_dict())
    inner(trainer).train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, trained[name])}
    assert changed == {name for name in trained if ".h." in name}
    # Without any that has two modes nothing is added.
    plain = make_trainer(OptimizerCallback("adamw", param_options={"*.h.*": {"optimizer": "lion"}}))
    plain.train()
    for one, expected in ((trainer, 1), (plain, 0)):
        assert [type(each) for each in one.callback_handler.callbacks].count(hfoptim.EvaluationWeights) == expected


def test_adam_weight_decays_patterns_choose_who_is_decayed(make_trainer, inner, untied):
    patterns = {"exclude_from_weight_decay": ["wpe"], "layer_decay": 0.5, "weight_decay": 0.1}
    trainer = make_trainer(OptimizerCallback("adam_weight_decay", lr=1e-3, **patterns), own={"model": untied()})
    trainer.create_optimizer()
    for name, (lr, decay) in found(inner(trainer), "lr", "weight_decay").items():
        assert lr == 1e-3 * 0.5 ** (3 - depth_of(name)), name
        assert decay == (0.0 if "wpe" in name else 0.1), name
    with pytest.raises(ValueError, match=r"has weight_decay=0.5, and exclude_from_weight_decay says which"):
        OptimizerCallback("adam_weight_decay", param_options={"*.bias": {"weight_decay": 0.5}}, **patterns)


def test_adafactors_own_learning_rate(make_trainer, inner, untied):
    # It may come with the TrainingArguments; without, nothing can be scaled.
    callback = OptimizerCallback("adafactor", layer_decay=0.5)
    trainer = make_trainer(callback, own={"model": untied()}, learning_rate=1e-2)
    trainer.create_optimizer()
    assert found(inner(trainer), "lr")["lm_head.weight"] == (1e-2,)
    with pytest.raises(ValueError, match="adafactor sets its own learning rate, which layer_decay changes; give lr"):
        make_trainer(callback, own={"model": untied()})
    with pytest.raises(ValueError, match="adafactor sets its own learning rate, which layer_decay changes"):
        OptimizerCallback("adafactor", relative_step=True, layer_decay=0.5)
    for given, said in (({"head_lr": 1e-2}, "head_lr"), ({"param_options": {"*.h.*": {"lr": 1e-2}}}, "param_options")):
        callback = OptimizerCallback("adafactor", **given)
        make_trainer(callback, own={"model": untied()}, learning_rate=1e-2).create_optimizer()
        with pytest.raises(
            ValueError, match=f"own learning rate, which no schedule can scale together with that of {said}"
        ):
            make_trainer(callback, own={"model": untied()})
    for main, other in (("adafactor", "lion"), ("lion", "adafactor")):
        callback = OptimizerCallback(main, param_options={"*.bias": {"optimizer": other}})
        with pytest.raises(
            ValueError, match="adafactor sets its own learning rate, which no schedule can scale together"
        ):
            make_trainer(callback, own={"model": untied()})
    # Options that are no learning rates leave it as it is.
    trainer = make_trainer(
        OptimizerCallback("adafactor", param_options={"*.bias": {"clip_threshold": 2.0}}), own={"model": untied()}
    )
    trainer.train()
    assert isinstance(trainer.lr_scheduler, hfoptim.AdafactorSchedule)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lion", {"layer_deacy": 0.5}, r"lion has no option 'layer_deacy'; did you mean 'layer_decay'"),
        ("lion", {"layer_decay": 1.5}, r"layer_decay=1.5 is out of range"),
        ("lion", {"layer_decay": True}, r"layer_decay must be a number, got True"),
        ("lion", {"head_lr": -1.0}, r"head_lr=-1.0 is out of range"),
        ("lion", {"param_options": {"*.bias": {"eps": 1.0}}}, r"\['\*.bias'\]: lion has no option 'eps'"),
        ("lion", {"param_options": {"*.bias": {"lr": [1.0]}}}, r"\['\*.bias'\]: lr"),
        ("lion", {"param_options": {"*.bias": {"caution": 1}}}, r"\['\*.bias'\]: caution must be True or False, got 1"),
        ("lion", {"param_options": {"*.bias": {"betas": [0.9, 2]}}}, r"\['\*.bias'\]: betas\[1\]=2 is out of range"),
        ("lion", {"param_options": {"*.bias": {"optimizer": "loin"}}}, r"'loin'; did you mean 'lion'"),
        (
            "lion",
            {"param_options": {"*.bias": {"optimizer": "sam_sgd"}}},
            r"sam_sgd needs a closure",
        ),
        ("prodigy", {"layer_decay": 0.5}, r"prodigy finds one step size for all"),
    ],
)
def test_mistakes_are_refused_before_the_training(names, arguments, name, options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        OptimizerCallback(name, **options)
    with pytest.raises((ValueError, TypeError), match=words):
        arguments(optim=f"hfoptim_{name}", optim_args=json.dumps(options))


def test_mistakes_about_the_model_are_refused_when_the_optimizer_is_made(make_trainer):
    for options, words in (
        ({"param_options": {"lm_haed.*": {"lr": 1.0}}}, r"matches no parameter.*'lm_head'"),
        ({"param_options": {"lm_head.*": {"lr": 1.0}}}, r"lm_head.weight is tied to transformer.wte.weight"),
        ({"head_lr": 1.0}, r"no head that could be told from the rest; lm_head.weight is tied"),
    ):
        trainer = make_trainer(OptimizerCallback("lion", **options))
        with pytest.raises(ValueError, match=words):
            trainer.create_optimizer()
    callback = OptimizerCallback("lion", head_lr=1.0)
    with pytest.raises(ValueError, match="need the model, and there is none yet"):
        callback.optimizer_cls_and_kwargs(trainer.args, None)


def test_gradient_release_with_options_by_name(make_trainer, untied):
    given = {"max_grad_norm": 0, "max_steps": 2}
    plain = {"layer_decay": 0.5, "param_options": {"*.ln_*": {"weight_decay": 0.3}}}
    runs = []
    for release in (False, True):
        callback = OptimizerCallback("lion", lr=1e-3, gradient_release=release, **plain)
        trainer = make_trainer(callback, own={"model": untied()}, **given)
        trainer.train()
        runs.append(trainer.model.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    with pytest.raises(ValueError, match="gradient_release=True is for one optimizer"):
        OptimizerCallback("lion", gradient_release=True, param_options={"*.bias": {"optimizer": "adamw"}})


def test_the_callback_can_be_copied_pickled_and_shown(make_trainer, untied, inner):
    callback = OptimizerCallback("muon", lr=1e-3, layer_decay=0.5, param_options=SEVERAL)
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert twin.choice == callback.choice
    assert "layer_decay=0.5, param_options={'lm_head.*': {" in repr(callback)
    # One callback serves several trainers; the optimizers are made anew.
    made = []
    for _ in range(2):
        trainer = make_trainer(callback, own={"model": untied()})
        trainer.train()
        made.append(inner(trainer))
    assert made[0].optimizers[0] is not made[1].optimizers[0]


def test_text_in_configuration_files_is_read():
    # YAML's reader takes 1e-3 for text.
    callback = OptimizerCallback(
        "lion", head_lr="1e-3", param_options={"*.bias": {"lr": "1e-4", "betas": "(0.5, 0.6)"}}
    )
    assert callback.choice.grouping.head_lr == 1e-3
    assert callback.choice.grouping.param_options == {"*.bias": {"lr": 1e-4, "betas": (0.5, 0.6)}}
    read = parse_options("layer_decay=0.75,param_options={'*.bias': {'weight_decay': 0, 'betas': [0.1, 0.2]}}")
    assert read == {"layer_decay": 0.75, "param_options": {"*.bias": {"weight_decay": 0, "betas": (0.1, 0.2)}}}
    for text in (
        "param_options={'a': {'lr': 1}, 'a': {'lr': 2}}",
        "param_options={'a': {'lr': 1, 'lr': 2}}",
        '{"param_options": {"a": {"lr": 1}, "a": {"lr": 2}}}',
        '{"param_options": {"a": {"lr": 1, "lr": 2}}}',
    ):
        with pytest.raises(ValueError, match=r"'(a|lr)' is given twice"):
            parse_options(text)
