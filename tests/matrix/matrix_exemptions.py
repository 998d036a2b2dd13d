"""What of the matrix does not apply to whom, and why.

An entry is checked at every run: the test has to fail for that name, with that error, else the suite fails. So an entry
whose reason has gone has to go, too. `pytest -rx tests/matrix` prints the table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from tiers import sums_over_all, works_on_whole_tensors

import hfoptim


class Exemption(NamedTuple):
    """Why a test does not apply, and the error that its run ends with."""

    reason: str
    raises: type[BaseException] | tuple[type[BaseException], ...]


def _all(tests: tuple[str, ...], names: tuple[str, ...], raises: Any, reason: str) -> dict[tuple[str, str], Exemption]:
    return {(test, name): Exemption(reason, raises) for test in tests for name in names}


LBFGS = ("lbfgs", "torch.LBFGS")
SAM = ("sam_sgd",)
NEEDS_LOSS = (
    "adamc_schedule_free_plus",
    "alig",
    "emofact",
    "emolynx",
    "emonavi",
    "momo",
    "momo_adam",
    "polyak_sgd",
)
SECOND_ORDER = ("adahessian", "sophiah")
MUON = ("adamuon", "muon", "nadamuon", "nmuon", "normuon")
SCION = ("scion", "scionlight")

EXEMPTIONS: dict[tuple[str, str], Exemption] = {
    **_all(
        ("test_the_loss_falls_and_rises_with_maximize", "test_gradients_of_zero_move_nothing"),
        SCION,
        AssertionError,
        "its constraint draws parameters towards a ball smaller than they are, whatever the gradient",
    ),
    **_all(
        ("test_gradients_of_zero_move_nothing",),
        ("ranger21_base",),
        AssertionError,
        "its norm loss draws the norms of rows to 1, whatever the gradient",
    ),
    **_all(
        ("test_the_loss_falls_and_rises_with_maximize",),
        ("spectralsphere",),
        AssertionError,
        "it brings matrices to one spectral norm, here a smaller one, whatever the gradient",
    ),
    **_all(
        ("test_complex_parameters_step_like_pairs_of_reals",),
        ("sara",),
        TypeError,
        "it chooses entries by their sizes, and that of a complex number is not that of its parts: refused",
    ),
    **_all(
        ("test_complex_parameters_step_like_pairs_of_reals",),
        ("magma_adamw",),
        TypeError,
        "it compares directions of whole tensors, where a complex number is not a pair: refused",
    ),
    **_all(
        ("test_the_loss_falls_and_rises_with_maximize",),
        ("adamc_schedule_free_plus", "alig", "momo", "momo_adam", "polyak_sgd"),
        AssertionError,
        "its step goes by how far the loss is above 0, and a positive one that is to rise is below it",
    ),
    **_all(
        (
            "test_the_loss_falls_and_rises_with_maximize",
            "test_schedules_move_it",
            "test_groups_have_options_of_their_own_and_the_rest_of_the_defaults",
            "test_parameters_of_several_dtypes_step_alike_with_and_without_foreach",
        ),
        ("sgd_schedule_free",),
        AssertionError,
        "its learning rate of 1 is too large for this loss",
    ),
    **_all(
        (
            "test_the_loss_falls_and_rises_with_maximize",
            "test_schedules_move_it",
            "test_groups_have_options_of_their_own_and_the_rest_of_the_defaults",
            "test_parameters_of_several_dtypes_step_alike_with_and_without_foreach",
            "test_complex_parameters_step_like_pairs_of_reals",
        ),
        ("radam_schedule_free",),
        AssertionError,
        "it does not move in its first five steps",
    ),
    **_all(
        (
            "test_a_group_with_its_own_learning_rate_follows_a_schedule",
            "test_a_group_with_a_learning_rate_of_zero_stays",
        ),
        LBFGS,
        ValueError,
        "torch's LBFGS has one parameter group",
    ),
    **_all(
        ("test_a_group_added_later_takes_the_defaults_and_trains",),
        LBFGS,
        AssertionError,
        "torch's LBFGS has one parameter group",
    ),
    **_all(
        ("test_groups_have_options_of_their_own_and_the_rest_of_the_defaults",),
        LBFGS,
        (ValueError, TypeError),
        "LBFGS has no weight decay, and torch's has one parameter group",
    ),
    **_all(
        (
            "test_foreach_is_the_loop_also_where_parameters_freeze_and_gradients_are_missing",
            "test_parameters_of_several_dtypes_step_alike_with_and_without_foreach",
        ),
        LBFGS,
        (ValueError, TypeError),
        "LBFGS works on one vector of all parameters: no foreach, and one dtype",
    ),
    **_all(
        ("test_deepcopy_and_pickle_have_all_public_attributes",),
        LBFGS,
        AttributeError,
        "a copy of torch's LBFGS cannot step: it has no list of parameters",
    ),
    **_all(
        ("test_torchs_distributed_state_dict_goes_through",),
        LBFGS,
        (TypeError, NotImplementedError),
        "torch.distributed.checkpoint steps without a closure, and does not flatten lists, which LBFGS keeps",
    ),
    **_all(
        ("test_a_step_without_gradients_is_none",),
        (*LBFGS, *SAM),
        (TypeError, ValueError),
        "its step needs a closure",
    ),
    **_all(
        ("test_a_gradient_scaler_divides_by_its_scale_and_leaves_out_what_overflows",),
        (*LBFGS, *SAM, "bsam"),
        (TypeError, ValueError, RuntimeError),
        "its step needs a closure, which GradScaler does not hand over",
    ),
    **_all(
        ("test_a_gradient_scaler_divides_by_its_scale_and_leaves_out_what_overflows",),
        SECOND_ORDER,
        RuntimeError,
        "GradScaler divides gradients, and not the Hessian taken from their graph: refused",
    ),
    **_all(
        (
            "test_a_step_without_gradients_is_none",
            "test_a_gradient_scaler_divides_by_its_scale_and_leaves_out_what_overflows",
        ),
        NEEDS_LOSS,
        RuntimeError,
        "its step needs the loss, which GradScaler scales",
    ),
    **_all(
        ("test_frozen_parameters_stay",),
        SAM,
        RuntimeError,
        "SAM says so where no parameter has a gradient: by hand it means a forgotten backward",
    ),
    **_all(
        ("test_complex_parameters_step_like_pairs_of_reals",),
        tuple(name for name in map(str, hfoptim.list_optimizers()) if works_on_whole_tensors(name)),
        TypeError,
        "its rule works on whole tensors or matrices, where a complex number is not a pair: refused",
    ),
    **_all(
        (
            "test_the_loss_falls_and_rises_with_maximize",
            "test_schedules_move_it",
            "test_parameters_of_several_dtypes_step_alike_with_and_without_foreach",
        ),
        ("adashift",),
        AssertionError,
        "its first ten steps fill its average of gradients, and move nothing",
    ),
    **_all(
        ("test_complex_parameters_step_like_pairs_of_reals",),
        ("cadamp", "claprop", "crmsproptf", "csgdp", "csgdw"),
        TypeError,
        "caution takes a mean over the tensor, where a complex number is not a pair: refused",
    ),
    **_all(
        ("test_complex_parameters_step_like_pairs_of_reals",),
        SECOND_ORDER,
        TypeError,
        "the Hessian's diagonal is that of real parameters: refused",
    ),
    **_all(
        ("test_a_sparse_gradient_is_refused_by_name_and_changes_nothing",),
        ("adagrad", "sparse_adam", "lbfgs", "torch.LBFGS", "torch.SGD", "torch.Adagrad"),
        pytest.fail.Exception,
        "takes sparse gradients",
    ),
    **_all(
        ("test_a_sparse_gradient_is_refused_by_name_and_changes_nothing",),
        ("torch.AdamW",),
        RuntimeError,
        "torch refuses in other words",
    ),
    **_all(
        ("test_parameters_without_memory_get_state_without_memory",),
        LBFGS,
        RuntimeError,
        "LBFGS decides by the gradient's size whether to go on",
    ),
    **_all(
        (
            "test_parameters_without_memory_get_state_without_memory",
            "test_parameters_of_two_devices_step_in_one_optimizer",
        ),
        SECOND_ORDER,
        RuntimeError,
        "draws random numbers, for which the device without memory has no generator",
    ),
    **_all(
        ("test_parameters_of_two_devices_step_in_one_optimizer",),
        (*(name for name in map(str, hfoptim.list_optimizers()) if sums_over_all(name)), *SAM, "mechanic_adamw"),
        NotImplementedError,
        "sums over all gradients cannot leave the device without memory",
    ),
    **_all(
        ("test_parameters_of_two_devices_step_in_one_optimizer",),
        LBFGS,
        RuntimeError,
        "LBFGS works on one vector of all parameters, on one device",
    ),
    **_all(
        ("test_groups_have_options_of_their_own_and_the_rest_of_the_defaults",),
        ("sparse_adam",),
        (TypeError, ValueError),
        "it has no weight decay, which would move every row",
    ),
    **_all(
        ("test_complex_parameters_step_like_pairs_of_reals",),
        ("sparse_adam",),
        TypeError,
        "sparse gradients of complex parameters are refused",
    ),
    **_all(
        (
            "test_parameters_without_memory_get_state_without_memory",
            "test_parameters_of_two_devices_step_in_one_optimizer",
        ),
        ("sparse_adam",),
        NotImplementedError,
        "torch coalesces no sparse gradient on the device without memory",
    ),
    **_all(
        ("test_the_loss_falls_and_rises_with_maximize",),
        ("nero", "srmm"),
        AssertionError,
        "the first step goes to balanced weights, or to an average that begins at 0, whatever the gradient is",
    ),
    **_all(
        ("test_a_group_with_a_learning_rate_of_zero_stays",),
        ("srmm",),
        AssertionError,
        "goes to an average of parameters that begins at 0, whatever lr is",
    ),
    **_all(
        (
            "test_the_loss_falls_and_rises_with_maximize",
            "test_schedules_move_it",
            "test_a_group_with_its_own_learning_rate_follows_a_schedule",
            "test_foreach_is_the_loop_also_where_parameters_freeze_and_gradients_are_missing",
            "test_parameters_of_several_dtypes_step_alike_with_and_without_foreach",
            "test_complex_parameters_step_like_pairs_of_reals",
            "test_clipped_gradients_are_what_the_step_takes",
            "test_state_loads_into_parameters_of_another_dtype",
            "test_every_compiled_step_is_the_plain_one",
        ),
        ("flashadamw", "galore_adamw_8bit"),
        ValueError,
        "its state of 8 bits is not for parameters in double precision, in float16 or complex ones: refused",
    ),
    **_all(
        ("test_the_loss_falls_and_rises_with_maximize", "test_schedules_move_it"),
        ("gravity",),
        AssertionError,
        "the first steps go by the random velocity that it begins with",
    ),
    **_all(
        ("test_names_survive_if_one_side_has_them",),
        ("adam_mini",),
        ValueError,
        "names decide which groups Adam-mini makes",
    ),
    **_all(
        ("test_a_step_without_gradients_is_none",),
        ("torch.Adagrad",),
        AssertionError,
        "torch's Adagrad makes its state when it is made",
    ),
    **_all(
        ("test_every_parameter_that_stepped_has_state",),
        ("torch.SGD",),
        AssertionError,
        "torch's SGD keeps nothing without momentum",
    ),
}
