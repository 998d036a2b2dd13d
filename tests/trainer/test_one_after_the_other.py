"""Trainings one after the other in one process: what the first was given is not the second's."""

from __future__ import annotations

import os

import pytest
import second_pass_worker
import test_token_weights
import transformers
import window_worker
from environment import accelerates_variables_restored

SETS_VARIABLES = int(transformers.__version__.split(".")[0]) < 5


def second_pass(name, folder):
    return second_pass_worker.measure(second_pass_worker.CASES[name], str(folder))


def test_a_second_pass_and_token_weights_leave_each_other_alone(tmp_path):
    first = second_pass("adahessian", tmp_path)
    with accelerates_variables_restored():
        second_pass("sam_sgd autocast", tmp_path)
    case = window_worker.Case("gpt2", "token_weights")
    test_token_weights.check(case, window_worker.measure(case, str(tmp_path)), right=True)
    assert second_pass("adahessian", tmp_path)["weights"] == first["weights"]


@pytest.mark.parametrize("bf16", [True, False])  # in this order
def test_a_tests_precision_is_its_own(make_trainer, bf16):
    assert make_trainer(bf16=bf16).accelerator.mixed_precision == ("bf16" if bf16 else "no")


def test_the_precision_that_transformers_4_hands_on(make_trainer):
    """docs/trainer.md says so, and what to do."""
    make_trainer(bf16=True)
    assert make_trainer().accelerator.mixed_precision == ("bf16" if SETS_VARIABLES else "no")
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    assert make_trainer().accelerator.mixed_precision == "no"
