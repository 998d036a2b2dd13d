"""Pictures of schedules: what is drawn is what the schedules give, and the command line draws it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import schedules
from hfoptim.cli import app
from schedules import absolute, cosine, linear, warmup
from schedules.drawing import EXAMPLES, examples

PNG = b"\x89PNG"
CURVES = [name for name in schedules.list_schedules() if schedules.get_schedule_info(name).curve is not None]


def drawn(figure: Any) -> dict[str, list[tuple[float, float]]]:
    """The points of every line, by its label; the unused diagrams of a grid have none."""
    lines = [line for axes in figure.axes for line in axes.lines]
    return {str(line.get_label()): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in lines}


def optimizer() -> Any:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in (0.1, 0.1, 0.3)]
    return torch.optim.AdamW(groups, weight_decay=0.2)


def test_names_curves_and_labels_in_one_diagram() -> None:
    mine = warmup(3).then(cosine(9))
    figure = schedules.plot(
        "linear",
        ("polynomial", {"power": 2, "lr_end": 0.1}),
        mine,
        ("labelled", mine * 2),
        {"by name": "constant", "by options": ("cosine", {"num_cycles": 2})},
        num_warmup_steps=2,
        num_training_steps=10,
    )
    lines = drawn(figure)
    assert list(lines) == [
        "linear",
        "polynomial, power=2, lr_end=0.1",
        repr(mine),
        "labelled",
        "by name",
        "by options",
    ]
    steps = list(range(13))  # the longest has 12
    expected = {
        "linear": schedules.get_curve("linear", 2, 10),
        "polynomial, power=2, lr_end=0.1": schedules.get_curve("polynomial", 2, 10, {"power": 2, "lr_end": 0.1}),
        "labelled": mine * 2,
        "by options": schedules.get_curve("cosine", 2, 10, {"num_cycles": 2}),
    }
    for label, curve in expected.items():
        assert lines[label] == list(zip(steps, curve.bind(1.0).values(steps), strict=True))
    assert [axes.get_visible() for axes in figure.axes] == [True]
    assert figure.get_supxlabel() == "step"
    assert figure.get_supylabel() == "multiplier"


def test_learning_rates_and_absolute_floors() -> None:
    figure = schedules.plot(
        ("cosine_with_min_lr", {"min_lr": 1e-4}), num_training_steps=10, lr=1e-3, steps=15, num_warmup_steps=0.2
    )
    (points,) = drawn(figure).values()
    assert [step for step, _ in points] == list(range(16))
    assert points[2] == (2, 1e-3)
    assert [lr for _, lr in points[10:]] == [pytest.approx(1e-4)] * 6
    assert figure.get_supylabel() == "learning rate"


def test_a_diagram_each() -> None:
    figure = schedules.plot("linear", "cosine", "constant", ("four", linear(5)), "rex", columns=3)
    assert len(figure.axes) == 6
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == ["linear", "cosine", "constant", "four", "rex"]
    assert all(len(axes.lines) == 1 for axes in figure.axes[:5])
    # Nothing is cut off below, and a constant is not drawn as if it were 0.
    assert figure.axes[2].get_ylim()[0] == 0.0


def test_schedules_that_drive_an_optimizer() -> None:
    driven = optimizer()
    schedule: Any = schedules.get_scheduler("linear", driven, 2, 10)
    alone = schedules.schedule_hyperparameter(optimizer(), "weight_decay", linear(8))
    schedules.schedule_hyperparameter(alone.optimizer, "beta1", linear(8).between(absolute(0.8), absolute(0.9)), alone)
    figure = schedules.plot(("one", schedule), ("other", alone))
    lines = drawn(figure)
    assert list(lines) == [
        "one, group 0",
        "one, group 2",
        "other, weight_decay of group 0",
        "other, beta1 of group 0",
    ]
    assert lines["one, group 2"] == [(step, schedule.lr_at(step)[2]) for step in range(11)]
    assert lines["other, weight_decay of group 0"][4] == (4, 0.2 * 0.5)
    assert figure.get_supylabel() == "learning rate or value"
    # Drawing has moved nothing.
    assert schedule.last_epoch == 0
    assert driven.param_groups[0]["lr"] == 0.0
    assert len(drawn(schedules.plot(alone))["HyperparameterSchedule, beta1 of group 0"]) == 9


def test_what_never_ends_and_what_is_long() -> None:
    (points,) = drawn(schedules.plot(schedules.constant(0.5))).values()
    assert len(points) == 1001
    (points,) = drawn(schedules.plot(linear(10**6))).values()
    assert points[-1] == (10**6, 0.0)
    assert len(points) <= 2001


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_saved_to_a_file(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{ending}"
    schedules.plot("cosine", file=path)
    start = {"png": PNG, "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("what", "options", "error", "message"),
    [
        ((), {}, ValueError, "nothing to plot"),
        (("cosin",), {}, ValueError, "closest names are 'cosine'"),
        (("greedy",), {}, ValueError, "follows a metric"),
        ((("cosine", {"num_cicles": 1}),), {}, TypeError, "num_cicles"),
        ((3,), {}, TypeError, "cannot plot 3"),
        ((("a", "b", "c"),), {}, TypeError, "cannot plot"),
        (("cosine",), {"lr": 0}, ValueError, "lr must be above 0"),
        (("cosine",), {"steps": 0}, ValueError, "steps must be at least 1"),
        (("cosine",), {"columns": 0}, ValueError, "columns must be at least 1"),
    ],
)
def test_errors(what: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        schedules.plot(*what, **options)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib, or 'hfoptim\[report\]'"):
        schedules.plot("cosine")


@pytest.mark.parametrize("name", CURVES)
def test_every_curve_has_an_example_in_which_there_is_something_to_see(name: str) -> None:
    values = examples(100, 1000)[name].bind(1.0).values(1001)
    assert (len(set(values)) > 1) == (name != "constant")
    assert min(values) >= 0.0


def test_examples_are_of_names_that_there_are() -> None:
    assert set(EXAMPLES) <= set(CURVES)
    assert list(examples()) == CURVES


# -- the command line --------------------------------------------------------------------------------------------------


def call(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["schedules", *args], env={"COLUMNS": "100"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_list() -> None:
    code, out, _ = call()
    assert code == 0
    for name in schedules.list_schedules():
        assert re.search(rf"│ {name} +│", out), name
    text = " ".join(out.replace("│", " ").split())
    assert ": num_decay_steps*, num_stable_steps," in text
    assert schedules.get_schedule_info("cosine").description in text
    assert "last_epoch" not in text


def test_drawing_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    plot = schedules.plot
    monkeypatch.setattr(schedules, "plot", lambda *args, **kwargs: made.append(plot(*args, **kwargs)))
    path = tmp_path / "one.png"
    options = ["--steps", "50", "--warmup", "5", "--lr", "0.01", "-o", str(path)]
    assert call("plot", "cosine", "WSD", *options, "--kwargs", '{"WSD": {"num_decay_steps": 10}}') == (
        0,
        f"written to {path}\n",
        "",
    )
    assert path.read_bytes().startswith(PNG)
    lines = drawn(made[0])
    curve = schedules.get_curve("wsd", 5, 50, {"num_decay_steps": 10})
    assert [lr for _, lr in lines["WSD, num_decay_steps=10"]] == [0.01 * value for value in curve.values(51)]
    assert [lr for _, lr in lines["cosine"]] == [
        0.01 * each for each in schedules.get_curve("cosine", 5, 50).values(51)
    ]
    assert call("plot", "cosine", "-o", str(path), "--kwargs", '{"num_cycles": 2}', "--columns", "1")[0] == 0
    assert list(drawn(made[1])) == ["cosine, num_cycles=2"]


def test_drawing_all(tmp_path: Path) -> None:
    path = tmp_path / "all.png"
    assert call("plot", "--all", "-o", str(path))[0] == 0
    assert path.read_bytes().startswith(PNG)


def test_examples_of_other_lengths_have_the_same_shapes() -> None:
    short, long = examples(20, 200), schedules.drawing.examples(200, 2000)
    assert short.keys() == long.keys() >= {"infinite", "sequential", "warmup_stable_decay"}
    # Those that fall by step or by token, or rise by a logarithm of steps, have no share of the whole.
    by_step = {"exponential", "multiplicative", "power", "chebyshev", "noam", "one_cycle", "seesaw"}
    for name in short.keys() - by_step - {"warmup_lr", "warmup_decay_lr", "warmup_cosine_lr"}:
        near = [long[name].bind(1.0)(10 * step) for step in range(0, 201, 4)]
        assert short[name].bind(1.0).values(range(0, 201, 4)) == pytest.approx(near, abs=0.06), name
    with pytest.raises(ValueError, match="noam: noam is built around its warm-up"):
        examples(0, 1000)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["plot"], "give names of schedules or --all"),
        (["plot", "cosine", "--all"], "give names of schedules or --all"),
        (["plot", "--all", "--kwargs", "{}"], "--kwargs is for schedules given by name"),
        (["plot", "cosin"], "the closest names are 'cosine'"),
        (["plot", "greedy"], "follows a metric"),
        (["plot", "wsd"], "requires 'num_decay_steps'"),
        (["plot", "cosine", "--kwargs", "{"], "not JSON"),
        (["plot", "cosine", "--kwargs", "[]"], "must be a JSON object"),
        (["plot", "cosine", "--kwargs", '{"num_cicles": 1}'], "closest names are 'num_cycles'"),
        (["plot", "cosine", "linear", "--kwargs", '{"num_cycles": 1}'], "say whose options these are"),
        (["plot", "cosine", "--kwargs", '{"linear": {}}'], "options of 'linear', which is not among the names"),
        (["plot", "cosine", "-o", "picture.abc"], "abc"),
        (["plot", "cosine", "-o", "no/such/folder/picture.png"], "No such file or directory"),
    ],
)
def test_wrong_calls(args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*args)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("Error: ")
    assert not list(tmp_path.iterdir())
