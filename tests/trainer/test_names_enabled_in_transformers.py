"""enable(): hfoptim's names wherever TrainingArguments takes one. disable(): nothing of it left."""

import argparse
import copy
import dataclasses
import json
import pickle

import pytest
import torch
import transformers
from ranks import run_code
from transformers import HfArgumentParser, Trainer, TrainingArguments, hf_argparser, optimization
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

import hfoptim
import schedules
from hfoptim.trainer import OptimizerCallback, disable, enable

THEIR_OPTIMIZERS = [member.value for member in OptimizerNames]
THEIR_SCHEDULES = [member.value for member in SchedulerType]


def footprint():
    """All of transformers that enable() touches, in full."""
    found = {}
    for kind in (OptimizerNames, SchedulerType):
        for attribute in ("_member_names_", "_member_map_", "_value2member_map_"):
            found[kind, attribute] = copy.copy(getattr(kind, attribute))
        found[kind, "listing"] = list(kind)
        found[kind, "dict"] = {name: id(value) for name, value in vars(kind).items()}
    for owner in (Trainer, TrainingArguments, hf_argparser, optimization, argparse.ArgumentParser):
        found[owner] = {name: id(value) for name, value in vars(owner).items()}
    found["schedules"] = dict(optimization.TYPE_TO_SCHEDULER_FUNCTION)
    return found


def test_disable_takes_everything_back(make_trainer):
    before = footprint()
    enable()
    enable()
    assert footprint() != before
    trainer = make_trainer(
        OptimizerCallback("lion", schedule="cosine"), optim="adam", lr_scheduler_type="hfoptim_linear"
    )
    trainer.train()
    disable()
    assert footprint() == before
    disable()
    assert footprint() == before
    with pytest.raises(ValueError, match="lion"):
        OptimizerNames("lion")
    assert not hasattr(OptimizerNames, "HFOPTIM_LION")


def test_disable_leaves_what_others_put_over_ours(monkeypatch, make_trainer, inner):
    enable()
    ours = Trainer.__dict__["create_scheduler"]
    calls = []

    def theirs(self, *args, **kwargs):
        calls.append(args)
        return ours(self, *args, **kwargs)

    original = None
    try:
        Trainer.create_scheduler = theirs
        disable()
        assert Trainer.__dict__["create_scheduler"] is theirs
        make_trainer().train()
        assert calls
    finally:
        original = ours.__wrapped__
        Trainer.create_scheduler = original


# -- what is listed ---------------------------------------------------------------------------------------------------


def test_every_name_is_listed_and_transformers_own_come_first(names):
    listed = [member.value for member in OptimizerNames]
    assert listed[: len(THEIR_OPTIMIZERS)] == THEIR_OPTIMIZERS
    assert len(listed) == len(set(listed)) == len(OptimizerNames)
    for name in hfoptim.list_optimizers():
        assert name in listed
        assert f"hfoptim_{name}" in listed
    listed = [member.value for member in SchedulerType]
    assert listed[: len(THEIR_SCHEDULES)] == THEIR_SCHEDULES
    for name in schedules.list_schedules():
        assert name in listed
        assert f"hfoptim_{name}" in listed


def test_members_are_members(names):
    lion = OptimizerNames("lion")
    assert isinstance(lion, OptimizerNames)
    assert lion == "lion"
    assert lion is OptimizerNames(lion) is getattr(OptimizerNames, lion.name) is OptimizerNames[lion.name]
    assert OptimizerNames.LION.value == "lion_32bit"
    assert {lion: 1}["lion"] == 1
    assert OptimizerNames("hfoptim_adafactor") is not OptimizerNames.ADAFACTOR


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("LION", "lion"),
        ("Lion", "lion"),
        ("adam-weight-decay", "adam_weight_decay"),
        ("AdamWeightDecay", "adam_weight_decay"),
        ("HFOPTIM-Adafactor", "hfoptim_adafactor"),
        ("hfoptim_AdamW", "hfoptim_adamw"),
        ("nesterov", "hfoptim_sgd"),
        ("SGD", "sgd"),
        ("AdamW_Torch", "adamw_torch"),
    ],
)
def test_any_spelling(names, arguments, given, meant):
    assert OptimizerNames(given).value == meant
    assert arguments(optim=given).optim.value == meant
    parser = HfArgumentParser(TrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(["--output_dir", "out", "--optim", given, "--use_cpu"])
    assert args.optim.value == meant


def test_any_spelling_of_a_schedule(names, arguments):
    assert arguments(lr_scheduler_type="Inverse-Sqrt").lr_scheduler_type is SchedulerType.INVERSE_SQRT
    assert arguments(lr_scheduler_type="HFOPTIM-cosine").lr_scheduler_type.value == "hfoptim_cosine"


def test_names_of_transformers_keep_their_meaning(names, make_trainer, inner, watcher):
    for name, cls in (
        ("adafactor", transformers.Adafactor),
        ("sgd", torch.optim.SGD),
        ("adamw_torch", torch.optim.AdamW),
    ):
        trainer = make_trainer(optim=name)
        trainer.create_optimizer()
        assert type(inner(trainer)) is cls
        assert OptimizerNames(name) is getattr(OptimizerNames, name.upper())
    trainer = make_trainer(optim="sgd", lr_scheduler_type="cosine")
    trainer.train()
    assert type(trainer.lr_scheduler) is torch.optim.lr_scheduler.LambdaLR


@pytest.mark.parametrize("spelled", ["hfoptim_adafactor", "hfoptim_sgd", "hfoptim_lion", "lion", "adam", "adamw"])
def test_ours_are_built_from_the_catalogue(names, make_trainer, inner, spelled):
    trainer = make_trainer(optim=spelled)
    trainer.train()
    assert type(inner(trainer)) is hfoptim.get_optimizer_info(spelled.removeprefix("hfoptim_")).opt_class


def test_our_schedules_are_used_by_their_names(names, make_trainer, watcher):
    kwargs = {"timescale": 3}  # which transformers 4.57 drops for its own inverse_sqrt
    trainer = make_trainer(
        watcher,
        optim="hfoptim_sgd",
        learning_rate=1.0,
        lr_scheduler_type="hfoptim_inverse_sqrt",
        lr_scheduler_kwargs=kwargs,
    )
    trainer.train()
    assert isinstance(trainer.lr_scheduler, schedules.ScheduleLR)
    assert watcher.logged == pytest.approx([(3 / (step + 3)) ** 0.5 for step in range(4)])


def test_get_scheduler_of_transformers_knows_ours(names):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = transformers.get_scheduler("hfoptim_linear", optimizer, num_warmup_steps=0, num_training_steps=10)
    assert isinstance(schedule, schedules.ScheduleLR)


def test_a_schedule_that_transformers_lacks_is_there_under_its_plain_name(names, make_trainer):
    if "greedy" in THEIR_SCHEDULES:
        pytest.skip("this transformers has every schedule that hfoptim has")
    given = {"lr_scheduler_type": "greedy", "lr_scheduler_kwargs": {"min_lr": 1e-9}}
    trainer = make_trainer(eval_strategy="steps", eval_steps=1, **given)
    trainer.train()
    assert isinstance(trainer.lr_scheduler, schedules.GreedyLR)
    assert trainer.lr_scheduler.last_epoch >= 4


@pytest.mark.parametrize("name", ["hfoptim_reduce_lr_on_plateau", "hfoptim_plateau", "hfoptim_greedy"])
def test_a_schedule_of_ours_that_follows_a_metric(names, make_trainer, arguments, name):
    with pytest.raises(ValueError, match="follows an evaluation metric; give eval_strategy"):
        arguments(lr_scheduler_type=name)
    given = {"lr_scheduler_type": name, "lr_scheduler_kwargs": {"min_lr": 1e-9}, "learning_rate": 1e-3}
    trainer = make_trainer(eval_strategy="steps", eval_steps=2, **given)
    assert trainer.args.metric_for_best_model == "loss"
    assert trainer.args.greater_is_better is False
    trainer.train()
    assert trainer.lr_scheduler.best < float("inf")


# -- command line, JSON, pickle ---------------------------------------------------------------------------------------


def test_command_line(names, tmp_path):
    line = f"--output_dir {tmp_path} --use_cpu --optim lion --lr_scheduler_type hfoptim_cosine"
    line += " --optim_args betas=(0.8,0.9)"
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(line.split())
    assert (args.optim.value, args.lr_scheduler_type.value) == ("lion", "hfoptim_cosine")
    assert args.optim_args == "betas=(0.8,0.9)"


def test_command_line_defaults_and_other_choices_are_as_before(names, tmp_path):
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu"]
    )
    fields = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    assert args.optim.value == fields["optim"]
    assert args.lr_scheduler_type.value == "linear"
    with pytest.raises(SystemExit):
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(["--save_strategy", "lion"])


def test_command_line_names_the_closest(names, capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(["--output_dir", "out", "--optim", "loin"])
    error = capsys.readouterr().err
    assert "argument --optim" in error
    assert "'lion'" in error


def test_json_round_trip(names, arguments, tmp_path):
    args = arguments(optim="lion", lr_scheduler_type="hfoptim_cosine", optim_args="betas=(0.8,0.9)")
    written = json.loads(args.to_json_string())
    assert written["optim"] == "lion"
    assert written["lr_scheduler_type"] == "hfoptim_cosine"
    kept = ("optim", "lr_scheduler_type", "optim_args", "learning_rate")
    (tmp_path / "args.json").write_text(
        json.dumps({"output_dir": "out", "use_cpu": True, **{k: written[k] for k in kept}})
    )
    (again,) = HfArgumentParser(TrainingArguments).parse_json_file(tmp_path / "args.json")
    assert [getattr(again, key) for key in kept] == [getattr(args, key) for key in kept]


def test_options_may_be_an_object_in_a_json_file(names, make_trainer, inner, tmp_path):
    text = {"output_dir": "out", "use_cpu": True, "optim": "lion", "optim_args": {"betas": [0.8, 0.9], "caution": True}}
    (tmp_path / "args.json").write_text(json.dumps(text))
    (args,) = HfArgumentParser(TrainingArguments).parse_json_file(tmp_path / "args.json")
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    assert cls is hfoptim.Lion
    assert (kwargs["betas"], kwargs["caution"]) == ((0.8, 0.9), True)


def test_options_may_be_a_mapping_in_a_yaml_file_whose_reader_takes_1e3_for_text(names, tmp_path):
    (tmp_path / "args.yaml").write_text(
        "output_dir: out\nuse_cpu: true\noptim: Lion\noptim_args:\n  lr: 1e-3\n  betas: [0.8, 0.9]\n"
    )
    (args,) = HfArgumentParser(TrainingArguments).parse_yaml_file(str(tmp_path / "args.yaml"))
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    assert cls is hfoptim.Lion
    assert (kwargs["lr"], kwargs["betas"]) == (1e-3, (0.8, 0.9))


def test_pickle_and_copy_round_trip(names, arguments):
    args = arguments(optim="lion", lr_scheduler_type="hfoptim_cosine")
    for twin in (pickle.loads(pickle.dumps(args)), copy.deepcopy(args), copy.copy(args)):
        assert twin.optim is args.optim
        assert twin.lr_scheduler_type is args.lr_scheduler_type
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(args.optim, protocol)) is args.optim
    assert dataclasses.asdict(args)["optim"] == "lion"


def test_saved_training_arguments_are_read_where_the_names_are_not_enabled_yet(make_trainer, tmp_path):
    enable()
    trainer = make_trainer(optim="lion", lr_scheduler_type="hfoptim_cosine")
    trainer.save_model(tmp_path / "saved")
    disable()
    read = (
        "import sys, torch\n"
        "args = torch.load(sys.argv[1], weights_only=False)\n"
        "print(args.optim.value, args.lr_scheduler_type.value, type(args.optim).__name__)\n"
    )
    said = run_code(read, str(tmp_path / "saved" / "training_args.bin"), folder=tmp_path)
    assert said.split() == ["lion", "hfoptim_cosine", "OptimizerNames"]


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_closest(names, arguments):
    with pytest.raises(ValueError, match=r"'loin' is not the name of an optimizer .*closest are 'lion'.*adamw_torch"):
        arguments(optim="loin")
    with pytest.raises(ValueError, match=r"'cosin' is not the name of a schedule .*closest are 'cosine'"):
        arguments(lr_scheduler_type="cosin")
    with pytest.raises(ValueError, match="3 is not the name of an optimizer"):
        arguments(optim=3)


@pytest.mark.parametrize(
    ("optim", "optim_args", "words"),
    [
        ("lion", "beta=(0.9,0.99)", "lion has no option 'beta'.*'betas'"),
        ("lion", '{"momentum": 0.9}', "lion has no option 'momentum'"),
        ("lion", "betas=(0.9,0.99", "is missing"),
        ("lion", "betas=(0.9,1.0)", r"betas\[1\]=1.0 is out of range"),
        ("lion", "lr=-1", "lr=-1"),
        ("lion", "lr=nan", "lr=nan"),
        ("hfoptim_sgd", "nesterov=maybe", "nesterov must be True or False, got 'maybe'"),
        ("hfoptim_adafactor", "relative_step=True,lr=1e-3", "relative_step=True exclude each other"),
        ("hfoptim_adafactor", "relative_step=False", "relative_step=False needs a learning rate"),
        ("adam_weight_decay", "lr=1e-3,learning_rate=1e-3", "are the same option"),
    ],
)
def test_options_are_checked_when_the_arguments_are_made(names, arguments, optim, optim_args, words):
    with pytest.raises(ValueError, match=words):
        arguments(optim=optim, optim_args=optim_args)


def test_options_of_a_schedule_of_ours_are_checked_when_the_arguments_are_made(names, arguments):
    with pytest.raises(ValueError, match="lr_scheduler_kwargs: cosine has no option 'cycles'; it has num_cycles"):
        arguments(lr_scheduler_type="hfoptim_cosine", lr_scheduler_kwargs={"cycles": 2})


def test_optim_args_of_a_name_that_transformers_owns_keep_their_meaning(names, make_trainer, inner):
    trainer = make_trainer(optim="rmsprop", optim_args="momentum = 0.5")
    trainer.args.optim_args = None  # transformers' rmsprop takes none; its own reader must not be replaced
    trainer.create_optimizer()
    assert isinstance(inner(trainer), torch.optim.RMSprop)
