"""A Trainer over a model compiled as a whole or in parts: the groups of the plain model, and its checkpoints."""

import pytest
import torch
from accelerate.utils import is_compiled_module
from environment import accelerates_variables_restored
from resuming import parameters, same
from test_parameter_options import untied  # noqa: F401  a fixture
from transformers import Trainer

from hfoptim.engine.parameter_names import bare
from hfoptim.trainer import OptimizerCallback


def whole(model):
    return torch.compile(model, backend="eager")


def blocks(model):
    for index, block in enumerate(model.transformer.h):
        model.transformer.h[index] = torch.compile(block, backend="eager")
    model.lm_head = torch.compile(model.lm_head, backend="eager")
    return model


class OwnDecay(Trainer):
    def get_decay_parameter_names(self, model):
        return ["lm_head.weight", "transformer.h.0.mlp.c_fc.weight"]


CHOICES = {
    "adamw": ("adamw", {"weight_decay": 0.1}),
    "layers": ("adamw", {"weight_decay": 0.1, "layer_decay": 0.5, "head_lr": 1e-2}),
    "patterns": ("adamw", {"param_options": {"lm_head.*": {"optimizer": "lion", "lr": 1e-4}, "*.bias": {"lr": 0.1}}}),
    "muon": ("muon", {"weight_decay": 0.1}),
    "regular expressions": ("adam_weight_decay", {"weight_decay": 0.1, "exclude_from_weight_decay": [r"^lm_head\."]}),
}


def entries(trainer):
    """What the groups say of every parameter, by its name in the plain model."""
    names = {param: bare(name) for name, param in trainer.model.named_parameters()}
    return [
        (
            {names[param] for param in group["params"]},
            {key: value for key, value in group.items() if key not in ("params", "param_names")},
        )
        for group in trainer.optimizer.param_groups
    ]


@pytest.mark.parametrize("trainer_class", [Trainer, OwnDecay])
@pytest.mark.parametrize("wrap", [whole, blocks])
@pytest.mark.parametrize(("name", "options"), CHOICES.values(), ids=CHOICES)
def test_the_groups_are_those_of_the_plain_model(make_trainer, untied, name, options, wrap, trainer_class):  # noqa: F811
    found = []
    for model in (untied(), wrap(untied())):
        trainer = make_trainer(
            OptimizerCallback(name, lr=1e-3, **options), trainer_class=trainer_class, own={"model": model}
        )
        trainer.create_optimizer()
        found.append(entries(trainer))
    assert found[0] == found[1]
    assert len(found[0]) > 1


@pytest.mark.slow  # compiling the forward pass
@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_training_goes_on_with_and_without_torch_compile(make_trainer, untied, tmp_path, compiled_first):  # noqa: F811
    def trainer(compiled, steps):
        options = {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
        return make_trainer(
            OptimizerCallback("muon", lr=1e-3, layer_decay=0.5),
            own={"model": untied()},
            output_dir=str(tmp_path / f"{compiled}-{steps}"),
            max_steps=steps,
            save_steps=2,
            save_strategy="steps",
            lr_scheduler_type="constant",
            **options,
        )

    straight = trainer(False, 4)
    straight.train()
    with accelerates_variables_restored():  # else 4.57 compiles the second one, too
        first = trainer(compiled_first, 2)
        first.train()
    resumed = trainer(not compiled_first, 4)
    assert is_compiled_module(first.model_wrapped) is compiled_first
    resumed.train(resume_from_checkpoint=str(tmp_path / f"{compiled_first}-2" / "checkpoint-2"))
    assert is_compiled_module(resumed.model_wrapped) is not compiled_first
    same(parameters(resumed), parameters(straight))
