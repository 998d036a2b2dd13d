"""Which checkpoints count as whole, what is said of the others, and that the last whole one is not lost."""

import json
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from resuming import SaveAt, same_end
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments, trainer_utils
from transformers import trainer as trainer_module

import hfoptim
from hfoptim.trainer import OptimizerCallback, disable, enable, last_whole_checkpoint, private
from hfoptim.trainer.checkpoints import missing_parts

BROKEN = {
    "model.safetensors": "no weights (model.safetensors, model.safetensors.index.json, adapter_model.safetensors or "
    "the like)",
    "optimizer.pt": "no optimizer.pt",
    "scheduler.pt": "no scheduler.pt",
    "rng_state.pth": "no rng_state.pth",
    "trainer_state.json": "no trainer_state.json",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoints 2 and 4 of a Trainer without hfoptim."""

    class Line(torch.nn.Linear):
        def forward(self, x, labels):
            return {"loss": (super().forward(x) - labels).square().mean()}

    folder = tmp_path_factory.mktemp("trained")
    args = TrainingArguments(str(folder), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=4, save_steps=2)
    data = [{"x": torch.randn(2), "labels": torch.randn(2)} for _ in range(8)]
    Trainer(Line(2, 2), args, train_dataset=data).train()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def last(folder):
    return folder / "checkpoint-4"


def test_all_is_there(folder, messages):
    assert last_whole_checkpoint(folder) == last_whole_checkpoint(str(folder)) == str(folder / "checkpoint-4")
    assert hfoptim.last_whole_checkpoint is last_whole_checkpoint
    assert missing_parts(folder / "checkpoint-2") == []
    assert not messages()


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_is_not_there(folder, last, messages, name):
    (last / name).unlink()
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-2")
    assert messages() == [f"{last} is not a whole checkpoint and is passed over: {BROKEN[name]}"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", BROKEN)
def test_a_file_ends_early(folder, last, messages, name, share):
    data = (last / name).read_bytes()
    (last / name).write_bytes(data[: int(len(data) * share)])
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-2")
    (message,) = messages()
    assert f"{name} ends early" in message


def test_names_are_numbers_and_other_folders_are_not_looked_at(folder, last):
    last.rename(folder / "checkpoint-10")
    state = json.loads((folder / "checkpoint-10" / "trainer_state.json").read_text())
    (folder / "checkpoint-10" / "trainer_state.json").write_text(json.dumps({**state, "global_step": 10}))
    (folder / "checkpoint-900").write_text("a file")
    for name in ("checkpoint-best", "checkpoint-99-copy", "tmp-checkpoint-99", "runs"):
        (folder / name).mkdir()
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-10")


def test_nothing_whole(folder, tmp_path, messages):
    for step in (2, 4):
        (folder / f"checkpoint-{step}" / "trainer_state.json").unlink()
    assert last_whole_checkpoint(folder) is None
    assert [message.split(" is not")[0][-1] for message in messages()] == ["4", "2"]
    (tmp_path / "empty").mkdir()
    assert last_whole_checkpoint(tmp_path / "empty") is None
    with pytest.raises(FileNotFoundError):
        last_whole_checkpoint(tmp_path / "nowhere")


def test_the_step_has_to_be_that_of_the_name(folder, last):
    last.rename(folder / "checkpoint-6")
    assert missing_parts(folder / "checkpoint-6") == ["trainer_state.json is of step 4"]


def test_a_checkpoint_on_sigterm_that_is_still_being_written(last):
    (last / "checkpoint-is-incomplete.txt").write_text("in progress")
    assert missing_parts(last) == ["checkpoint-is-incomplete.txt says so"]


# -- other kinds of checkpoints ---------------------------------------------------------------------------------------


def test_only_the_model_was_to_be_saved(folder, arguments, last):
    training_state = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    for name in training_state:
        (last / name).unlink()
    # The arguments beside it say that there should be more.
    assert missing_parts(last) == [f"no {name}" for name in training_state]
    torch.save(arguments(save_only_model=True), last / "training_args.bin")
    assert missing_parts(last) == []
    (last / "training_args.bin").unlink()
    assert missing_parts(last) == []


def test_weights_in_several_files(last):
    (last / "model.safetensors").unlink()
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, shard in enumerate(shards):
        save_file({f"w{i}": torch.ones(3)}, last / shard)
    assert "no weights" in missing_parts(last)[0]  # the index comes last
    index = last / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w0": shards[0], "w1": shards[1]}}))
    assert missing_parts(last) == []
    (last / shards[0]).write_bytes((last / shards[0]).read_bytes()[:-1])
    (last / shards[1]).unlink()
    size = (last / shards[0]).stat().st_size
    assert missing_parts(last) == [f"{shards[0]} ends early ({size} bytes)", f"no {shards[1]}"]
    index.write_text(index.read_text()[:20])
    assert missing_parts(last) == ["model.safetensors.index.json ends early"]


def test_weights_that_a_trainer_saves_in_its_own_way(last):
    (last / "model.safetensors").unlink()
    assert "no weights" in missing_parts(last)[0]
    torch.save({"w": torch.ones(3)}, last / "projector.bin")
    assert missing_parts(last) == []
    (last / "trainer_state.json").unlink()
    assert missing_parts(last) == ["no trainer_state.json"]


def test_weights_of_torch_save(last):
    (last / "model.safetensors").unlink()
    torch.save({"w": torch.ones(1000)}, last / "pytorch_model.bin")
    assert missing_parts(last) == []
    (last / "pytorch_model.bin").write_bytes((last / "pytorch_model.bin").read_bytes()[:2000])
    assert missing_parts(last) == ["pytorch_model.bin ends early (2000 bytes)"]


@pytest.mark.parametrize("part", ["", "other"])
def test_adapters_of_peft(last, part):
    (last / "model.safetensors").unlink()
    (last / part).mkdir(exist_ok=True)
    weights, config = last / part / "adapter_model.safetensors", os.path.join(part, "adapter_config.json")
    save_file({"lora": torch.ones(3)}, weights)
    assert missing_parts(last) == [f"no whole {config}"]
    (last / config).write_text(json.dumps({"r": 8}))
    assert missing_parts(last) == []
    weights.write_bytes(weights.read_bytes()[:-4])
    assert "ends early" in missing_parts(last)[0]


def arguments_of_ranks(path, processes, **flags):
    """training_args.bin as far as it matters."""
    torch.save({"distributed_state": {"num_processes": processes}, "save_only_model": False, **flags}, path)


def test_random_numbers_of_every_process(last, arguments):
    state = (last / "rng_state.pth").read_bytes()
    (last / "rng_state.pth").unlink()
    arguments_of_ranks(last / "training_args.bin", 3)
    for rank in (0, 1):
        (last / f"rng_state_{rank}.pth").write_bytes(state)
    assert missing_parts(last) == ["no rng_state_2.pth"]
    arguments_of_ranks(last / "training_args.bin", 3, save_on_each_node=True)
    assert missing_parts(last) == []
    # Without the arguments only a gap shows.
    (last / "training_args.bin").unlink()
    assert missing_parts(last) == []
    (last / "rng_state_0.pth").unlink()
    assert missing_parts(last) == ["no rng_state_0.pth"]
    (last / "rng_state_1.pth").write_bytes(state[:-30])
    assert "rng_state_1.pth ends early" in missing_parts(last)[0]


def test_saved_arguments_are_read_and_not_run(last, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"trap": Trap(), "num_processes": 2}, last / "training_args.bin")
    assert missing_parts(last) == ["no rng_state_0.pth", "no rng_state_1.pth"]
    assert not (tmp_path / "sprung").exists()
    (last / "training_args.bin").write_bytes(pickle.dumps("of another format"))
    assert missing_parts(last) == []


def test_folders_of_fsdp(last):
    for name in ("model.safetensors", "optimizer.pt"):
        (last / name).unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        (last / name).mkdir()
        (last / name / "__0_0.distcp").write_bytes(b"shard")
    unfinished = [f"no {name}/.metadata" for name in ("pytorch_model_fsdp_0", "optimizer_0")]
    assert missing_parts(last) == unfinished
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        (last / name / ".metadata").write_bytes(b"plan")
    assert missing_parts(last) == []


def test_folders_of_deepspeed(last):
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        (last / name).unlink()
    (last / "global_step4").mkdir()
    states = last / "global_step4" / "mp_rank_00_model_states.pt"
    torch.save({"module": torch.ones(3)}, states)
    assert "no weights" in missing_parts(last)[0]
    (last / "latest").write_text("global_step4")
    assert missing_parts(last) == []
    states.write_bytes(states.read_bytes()[:-9])
    assert "global_step4/mp_rank_00_model_states.pt ends early" in missing_parts(last)[0]
    states.unlink()
    assert missing_parts(last) == ["no states in global_step4"]
    (last / "latest").write_text("global_step5")
    assert missing_parts(last) == ["no folder 'global_step5', which DeepSpeed's latest names"]


# -- in the Trainer ---------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(make_trainer, tmp_path):
    """A training with checkpoints 2 and 4, the last one without its end; gives their folder."""
    run = tmp_path / "run"
    make_trainer(output_dir=str(run), save_strategy="steps", save_steps=2, optim="sgd").train()
    (run / "checkpoint-4" / "trainer_state.json").unlink()
    return run


def starts_at(trainer):
    """The step from which a trainer goes on by itself."""
    steps = []
    original = trainer._load_from_checkpoint

    def load(path, *args, **kwargs):
        steps.append(int(Path(path).name.split("-")[1]))
        return original(path, *args, **kwargs)

    trainer._load_from_checkpoint = load
    trainer.train(resume_from_checkpoint=True)
    return steps


def test_a_lora_model_goes_on_from_its_last_whole_checkpoint(make_trainer, model, tmp_path):
    peft = pytest.importorskip("peft")
    run = tmp_path / "run"

    def trainer():
        lora = peft.LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.1, fan_in_fan_out=True)
        own = {"model": peft.get_peft_model(model(), lora)}
        given = {"output_dir": str(run), "save_strategy": "steps", "save_steps": 2}
        return make_trainer(OptimizerCallback("lion", lr=1e-3), own=own, **given)

    whole = trainer()
    whole.train()
    assert last_whole_checkpoint(run) == str(run / "checkpoint-4")
    (run / "checkpoint-4" / "adapter_config.json").unlink()
    (run / "checkpoint-4" / "trainer_state.json").unlink()
    resumed = trainer()
    assert starts_at(resumed) == [2]
    same_end(whole, resumed)
    assert last_whole_checkpoint(run) == str(run / "checkpoint-4")


def test_the_callback_serves_its_own_trainers(interrupted, make_trainer, messages):
    callback = OptimizerCallback("sgd", lr=1e-3)
    assert starts_at(make_trainer(callback, output_dir=str(interrupted))) == [2]
    assert "no trainer_state.json" in messages()[-1]
    # A trainer without it finds what it always found, and fails.
    with pytest.raises(FileNotFoundError, match=r"checkpoint-4/trainer_state\.json"):
        make_trainer(output_dir=str(interrupted), optim="sgd").train(resume_from_checkpoint=True)
    assert trainer_utils.get_last_checkpoint(interrupted) == str(interrupted / "checkpoint-4")


def test_enable_serves_trainers_and_scripts_until_disable(interrupted, make_trainer):
    originals = trainer_module.get_last_checkpoint, trainer_utils.get_last_checkpoint
    enable()
    try:
        assert starts_at(make_trainer(output_dir=str(interrupted), optim="sgd")) == [2]
        ours = trainer_utils.get_last_checkpoint
        assert ours(str(interrupted)) == str(interrupted / "checkpoint-2")
    finally:
        disable()
    assert (trainer_module.get_last_checkpoint, trainer_utils.get_last_checkpoint) == originals
    # A script that has imported ours gets what transformers says.
    assert ours(str(interrupted)) == str(interrupted / "checkpoint-4")


@pytest.mark.parametrize("way", ["callback", "names"])
def test_without_a_whole_checkpoint_it_says_so(interrupted, make_trainer, messages, way):
    (interrupted / "checkpoint-2" / "model.safetensors").unlink()
    if way == "names":
        enable()
    try:
        trainer = make_trainer(*([OptimizerCallback("sgd")] if way == "callback" else []), output_dir=str(interrupted))
        with pytest.raises(ValueError, match=rf"No valid checkpoint found in output directory \({interrupted}\)"):
            trainer.train(resume_from_checkpoint=True)
    finally:
        disable()
    said = messages()
    assert any("checkpoint-4" in each and "no trainer_state.json" in each for each in said)
    assert any("checkpoint-2" in each and "no weights" in each for each in said)


@pytest.mark.parametrize("way", ["callback", "names"])
@pytest.mark.parametrize("age", [0, 1000], ids=["by number", "by time"])
@pytest.mark.parametrize("limit", [1, 2])
def test_rotation_deletes_unfinished_checkpoints_first(interrupted, make_trainer, way, age, limit):
    """The unfinished one has the highest number, and transformers would keep it, and at limit 1 nothing else."""
    (interrupted / "checkpoint-4").rename(interrupted / "checkpoint-9")
    for path in interrupted.glob("checkpoint-*"):
        os.utime(path, (os.path.getmtime(path) - age,) * 2)
    given = {"output_dir": str(interrupted), "max_steps": 4, "save_total_limit": limit}
    if way == "names":
        enable()
        callbacks, given = [SaveAt(3)], {**given, "optim": "hfoptim_sgd"}
    else:
        callbacks = [SaveAt(3), OptimizerCallback("sgd")]
    try:
        make_trainer(*callbacks, **given).train(resume_from_checkpoint=True)
    finally:
        disable()
    left = sorted(path.name for path in interrupted.glob("checkpoint-*"))
    assert left == ["checkpoint-2", "checkpoint-3"][-limit:]
    assert last_whole_checkpoint(interrupted) == str(interrupted / "checkpoint-3")


def test_a_checkpoint_written_over_an_old_one_is_not_whole_before_it_is(make_trainer, tmp_path, monkeypatch):
    run = tmp_path / "run"
    given = {"output_dir": str(run), "save_strategy": "steps", "save_steps": 2}
    make_trainer(OptimizerCallback("lion", lr=1e-3), **given).train()
    assert last_whole_checkpoint(run) == str(run / "checkpoint-4")
    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3), **given)

    def fail(folder):
        raise OSError("no space left on device")

    monkeypatch.setattr(trainer, "_save_rng_state", fail)
    with pytest.raises(OSError, match="no space left"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    # Weights and optimizer are new, the random numbers' state is old.
    assert missing_parts(run / "checkpoint-4") == ["no trainer_state.json"]
    assert last_whole_checkpoint(run) == str(run / "checkpoint-2")


def test_the_one_just_written_is_not_deleted_while_others_still_write(make_trainer, tmp_path, monkeypatch):
    """Another process may be writing its random numbers when the first one deletes old checkpoints."""
    run = tmp_path / "run"
    given = {"output_dir": str(run), "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3), **given)
    save = trainer._save_rng_state
    monkeypatch.setattr(trainer, "_save_rng_state", lambda folder: save(folder) if folder.endswith("-2") else None)
    trainer.train()
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-4"]


def test_the_order_is_put_back_by_trainers_that_save_at_the_same_time():
    def sorting():
        owner = trainer_utils if hasattr(trainer_utils, "sort_checkpoints") else Trainer
        return vars(owner)["sort_checkpoints" if owner is trainer_utils else "_sorted_checkpoints"]

    def second():
        first_is_saving.wait()
        with private.deletion_order(list):
            first_is_done.wait()

    before, first_is_saving, first_is_done = sorting(), threading.Event(), threading.Event()
    thread = threading.Thread(target=second)
    thread.start()
    with private.deletion_order(list):
        assert sorting() is not before
        first_is_saving.set()
        time.sleep(0.05)
    first_is_done.set()
    thread.join()
    assert sorting() is before
