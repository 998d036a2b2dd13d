"""Arguments whose class has defaults of its own: what counts as the user's is what differs from those."""

import dataclasses
import os
from dataclasses import dataclass, field

import pytest
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.trainer_utils import SchedulerType

import hfoptim
from hfoptim.trainer import OptimizerCallback, defaults


@dataclass
class Fields(TrainingArguments):
    """As TRL's configs: other values in the fields."""

    learning_rate: float = 2e-5
    weight_decay: float = 0.1
    adam_beta2: float = 0.95
    adam_epsilon: float = field(default_factory=lambda: 1e-6)
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 10


@dataclass
class FilledIn(TrainingArguments):
    """Values come in `__post_init__`, before and after that of TrainingArguments, and depend on the processes."""

    learning_rate: float | None = None
    ratio: float = 0.1

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = 2e-5
        super().__post_init__()
        self.weight_decay = self.weight_decay or 0.1
        self.warmup_steps = self.warmup_steps or 10 * self.world_size
        self.adam_beta2 = 1 - (1 - self.adam_beta2) / 2


class Plain(TrainingArguments):
    """No dataclass: a signature, and values that it puts in."""

    def __init__(self, output_dir, *, learning_rate=2e-5, lr_scheduler_type="cosine", **kwargs):
        kwargs.setdefault("weight_decay", 0.1)
        kwargs.setdefault("warmup_steps", 10)
        super().__init__(
            output_dir, learning_rate=learning_rate, lr_scheduler_type=lr_scheduler_type, adam_beta2=0.95, **kwargs
        )


@dataclass
class Needy(Fields):
    """Cannot be made with nothing given: its fields' defaults count."""

    task: str = ""

    def __post_init__(self):
        if not self.task:
            raise ValueError("give a task")
        super().__post_init__()


CLASSES = [Fields, FilledIn, Plain, Needy]


@pytest.fixture
def make(tmp_path):
    def make(kind, **given):
        given = {"task": "cola", **given} if kind is Needy else given
        return kind(output_dir=str(tmp_path), use_cpu=True, report_to=[], max_steps=2, **given)

    return make


def resolved(args, name="lion"):
    return OptimizerCallback(name).choice.resolve(args)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_classes_own_values_are_not_the_users(make, kind):
    args = make(kind)
    assert args.learning_rate == 2e-5
    for name, lr in (("prodigy", 1.0), ("lion", 1e-4), ("adafactor", None)):
        found = resolved(args, name)
        assert (found.lr, found.lr_given, found.unused) == (lr, False, ())
    assert resolved(args).weight_decay == 0.0
    assert resolved(args).kwargs.get("betas", (0.9, 0.99)) == (0.9, 0.99)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_value_that_is_trainingarguments_default_is_the_users(make, kind):
    args = make(kind, learning_rate=5e-5)
    assert resolved(args).lr == resolved(args, "prodigy").lr == 5e-5
    if kind is not FilledIn:  # which puts 0.1 in its place
        assert resolved(make(kind, weight_decay=0.0), "lamb").weight_decay == 0.0
    args.learning_rate = 3e-4  # also later, as a search for hyper-parameters does
    assert resolved(args).lr == 3e-4


@pytest.mark.parametrize("kind", CLASSES)
def test_other_values_are_the_users(make, kind):
    args = make(kind, learning_rate=1e-3, weight_decay=0.3, adam_beta1=0.8, adam_epsilon=1e-5)
    found = resolved(args, "adamw")
    assert (found.lr, found.weight_decay) == (1e-3, 0.3)
    assert (found.kwargs["betas"], found.kwargs["eps"]) == ((0.8, 0.999), 1e-5)


@pytest.mark.parametrize("kind", [Fields, FilledIn, Plain, Needy])
def test_a_schedule_and_a_warmup_that_nobody_asked_for_are_not_refused(make, kind, model, text):
    args = make(kind)
    assert args.get_warmup_steps(1000) > 0
    trainer = Trainer(model(), args, train_dataset=text, callbacks=[OptimizerCallback("adafactor")])
    trainer.train()
    assert trainer.state.global_step == 2
    with pytest.raises(ValueError, match="a warmup cannot scale"):
        Trainer(model(), make(kind, warmup_steps=3), callbacks=[OptimizerCallback("adafactor")])
    wanted = "linear" if kind is not FilledIn else "cosine"
    with pytest.raises(ValueError, match=f"lr_scheduler_type='{wanted}' cannot scale"):
        Trainer(model(), make(kind, lr_scheduler_type=wanted), callbacks=[OptimizerCallback("adafactor")])


@pytest.mark.parametrize("kind", CLASSES)
def test_by_name_and_the_log_says_whose_default_it_is(names, make, kind, model, text, messages):
    trainer = Trainer(model(), make(kind, optim="lion"), train_dataset=text)
    trainer.create_optimizer()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-4}
    whose = {Fields: "Fields'", FilledIn: "FilledIn's", Plain: "Plain's", Needy: "Needy's"}[kind]
    (message,) = messages()
    assert message.startswith(f"learning_rate is {whose} default 2e-05, so lion uses its own: 0.0001")


def test_from_the_command_line_and_from_text(names, tmp_path):
    line = ["--output_dir", str(tmp_path), "--use_cpu", "True", "--optim", "prodigy"]
    (args,) = HfArgumentParser(Fields).parse_args_into_dataclasses(line)
    assert resolved(args, "prodigy").lr == 1.0
    (args,) = HfArgumentParser(Fields).parse_args_into_dataclasses([*line, "--learning_rate", "5e-5"])
    assert resolved(args, "prodigy").lr == 5e-5


def test_seq2seq_arguments(make):
    assert resolved(make(Seq2SeqTrainingArguments)).lr == 1e-4
    assert resolved(make(Seq2SeqTrainingArguments, learning_rate=2e-5)).lr == 2e-5


@pytest.mark.parametrize("kind", [TrainingArguments, Seq2SeqTrainingArguments, *CLASSES])
def test_no_field_of_new_arguments_counts_as_changed_but_those_given(make, kind):
    args = make(kind)
    looked_at = (
        "learning_rate",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "lr_scheduler_type",
        "optim",
    )
    assert [name for name in looked_at if defaults.changed(args, name)] == []
    assert not defaults.warmup_changed(args)
    assert defaults.changed(make(kind, lr_scheduler_type=SchedulerType.CONSTANT), "lr_scheduler_type")


def test_asking_for_defaults_sets_nothing_up(make, monkeypatch):
    args = make(FilledIn)
    defaults._found.clear()
    before, state = dict(os.environ), {f.name: getattr(args, f.name) for f in dataclasses.fields(args)}
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: pytest.fail("set up again"))
    assert not defaults.changed(args, "weight_decay")
    assert dict(os.environ) == before
    assert {f.name: getattr(args, f.name) for f in dataclasses.fields(args)} == state


def test_the_optimizers_of_both_ways_are_the_same(names, make, model, text):
    for given, lr in (({}, 1.0), ({"learning_rate": 5e-5}, 5e-5)):
        by_callback = Trainer(model(), make(Fields, **given), callbacks=[OptimizerCallback("prodigy")])
        by_name = Trainer(model(), make(Fields, optim="prodigy", **given))
        for trainer in (by_callback, by_name):
            trainer.create_optimizer()
            assert type(trainer.optimizer) is hfoptim.Prodigy
            assert {group["lr"] for group in trainer.optimizer.param_groups} == {lr}
