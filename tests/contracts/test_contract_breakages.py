"""A contract is worth what it catches: one broken component for each kind and mistake, and the right one beside it."""

from pathlib import Path

import pytest

from freeflow_core.plugin import Manager, Registry
from freeflow_core.testing import CONTRACTS, check_names, run_contract

PLUGIN = Path(__file__).with_name("breakages.py")
EXPECTED = {
    ("student", "sign"): {"the_jump_follows_the_average_velocity"},
    ("student", "batch"): {"rows_do_not_depend_on_each_other"},
    ("student", "detached"): {"gradients_are_finite"},
    ("student", "outside"): {"only_forward_holds_gradients"},
    ("student", "in-place"): {"inputs_are_left_alone"},
    ("student", "state"): {"forward_is_deterministic"},
    ("student", "random"): {"forward_is_deterministic"},
    ("student", "float64"): {"float32_in_float32_out"},
    ("student", "batch-in-training"): {"training_mixes_no_rows"},
    ("student", "unsaved"): {"comes_back_from_its_file"},
    ("sampler", "in-place"): {"samples_have_the_shape_and_dtype_of_the_noise"},
    ("sampler", "state"): {"same_noise_same_samples"},
    ("sampler", "rows"): {"rows_do_not_depend_on_each_other"},
    ("sampler", "count"): {"counts_its_evaluations"},
    ("sampler", "direction"): {"reaches_the_data"},
    ("sampler", "dtype"): {"samples_have_the_shape_and_dtype_of_the_noise"},
    ("sampler", "random"): {"same_noise_same_samples"},
    ("sampler", "any-grid"): {"a_rising_grid_is_refused"},
    ("codec", "dtype"): {"encodes_to_float32_states"},
    ("codec", "shift"): {"round_trip"},
    ("codec", "wrap"): {"out_of_range_states_are_clamped"},
    ("source", "start"): {"goes_on_where_it_was"},
    ("source", "rank"): {"two_processes_share_the_rows"},
    ("source", "labels"): {"labels_are_in_range"},
    ("source", "random"): {"built_again_it_is_the_same"},
    ("source", "rows"): {"batches_are_what_it_says"},
    ("evaluator", "reset"): {"reset_forgets_the_row_before"},
    ("evaluator", "batches"): {"scores_do_not_depend_on_the_batches"},
    ("evaluator", "writes"): {"images_are_left_alone"},
    ("evaluator", "nan"): {"scores_are_finite_numbers_by_name"},
    ("verifier", "sign"): {"higher_is_better"},
    ("verifier", "batch"): {"rows_do_not_depend_on_each_other"},
    ("verifier", "shape"): {"scores_are_one_number_a_sample"},
    ("tracker", "names"): {"odd_values_stop_no_run"},
    ("tracker", "options"): {"options_are_plain_json"},
    ("tracker", "twice"): {"nothing_is_doubled_by_a_kill"},
}
"""The checks that must fail, by kind and mistake."""


@pytest.fixture(scope="module")
def registry():
    return Registry(Manager.load([PLUGIN]))


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in EXPECTED}))
def test_the_right_component_keeps_the_contract(registry, kind):
    failed = {
        result.check: result.message
        for result in run_contract(CONTRACTS[kind], component=f"broken-{kind}", registry=registry)
        if result.status == "failed"
    }
    silent = failed.pop("every option is described", "")
    assert bool(silent) == (kind == "codec"), silent  # whose options hold one without a description
    assert not failed


@pytest.mark.parametrize(("kind", "mistake"), EXPECTED)
def test_a_mistake_is_caught(registry, kind, mistake):
    names = {f"test_{check}" for check in EXPECTED[kind, mistake]}
    found = list(
        run_contract(
            CONTRACTS[kind], component=f"broken-{kind}", options={"mistake": mistake}, registry=registry, only=names
        )
    )
    assert [result.status for result in found] == ["failed"] * len(names), found
    assert all(f"The {kind} 'broken-{kind}'" in result.message for result in found)
    assert all("expected" in result.message or "raised" in result.message for result in found)


def test_every_check_is_on_the_page():
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "test-a-plugin.md").read_text("utf-8")
    checks = {name[5:].replace("_", " ") for contract in CONTRACTS.values() for name in check_names(contract)}
    missing = sorted(check for check in checks if f"| {check} |" not in page)
    assert not missing
