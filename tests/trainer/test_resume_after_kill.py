"""A training killed with SIGKILL, between and during saves, resumes from the last whole checkpoint, bit for bit."""

import logging
import os
from pathlib import Path

import kill_worker
import pytest
from kill_worker import KILLED, POINTS, make_trainer
from ranks import run
from resuming import same_end, same_way

from hfoptim import disable, enable, last_whole_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker forks, and is killed by a signal")

SOME = ("cut model.safetensors", "after optimizer.pt", "before trainer_state.json", "between saves")
CASES = [
    *(("callback", point) for point in POINTS),
    *((way, point) for way in ("names", "plain") for point in SOME),
    ("sharded", "cut model.safetensors"),
]
# What is said of the checkpoint that was cut off.
SAID = {
    "cut model.safetensors": "model.safetensors ends early",
    "before training_args.bin": "no trainer_state.json",
    "cut optimizer.pt": "optimizer.pt ends early",
    "after optimizer.pt": "no trainer_state.json; no scheduler.pt; no rng_state.pth",
    "cut scheduler.pt": "scheduler.pt ends early",
    "after scheduler.pt": "no trainer_state.json; no rng_state.pth",
    "cut rng_state.pth": "rng_state.pth ends early",
    "before trainer_state.json": "no trainer_state.json",
    "cut trainer_state.json": "trainer_state.json ends early",
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with what every killed training left."""
    folder = tmp_path_factory.mktemp("killed")
    cases = map(":".join, CASES)
    code, said = run(Path(kill_worker.__file__), str(folder), *cases, output=folder / "said.txt", timeout=300)
    assert code == 0, said[-3000:]
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted training, by its way."""
    done = {}

    def of(way):
        if way not in done:
            done[way] = make_trainer(tmp_path_factory.mktemp("whole"), way)
            done[way].train()
        return done[way]

    return of


@pytest.fixture(autouse=True)
def given_back():
    yield
    disable()


def files(folder):
    return {str(path): path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(("way", "point"), CASES)
def test_it_goes_on_from_the_last_whole_checkpoint(killed, whole, way, point, caplog):
    folder = killed / way / point
    last = folder / ("checkpoint-4" if point == "while deleting" else "checkpoint-2")
    before = files(folder)
    with caplog.at_level(logging.WARNING, logger="hfoptim"):
        assert last_whole_checkpoint(folder) == str(last)
    assert files(folder) == before, "nothing is to be changed or deleted"
    if point in SAID:
        (message,) = (record.getMessage() for record in caplog.records)
        said = SAID[point]
        if way == "sharded":
            said = "no weights"
        assert f"{folder / KILLED} is not a whole checkpoint and is passed over: " in message
        assert said in message
    else:
        assert not caplog.records

    if way != "callback":
        enable()
    resumed = make_trainer(folder, "taken over" if way == "plain" else way)
    resumed.train(resume_from_checkpoint=True)
    if way == "plain":
        disable()
        # The groups are the checkpoint's: no momentum, where ours has some by default.
        assert [group["momentum"] for group in resumed.optimizer.param_groups] == [0, 0]
        same_way(whole(way), resumed)
    else:
        same_end(whole(way), resumed)
    assert last_whole_checkpoint(folder) == str(folder / f"checkpoint-{kill_worker.STEPS}")
