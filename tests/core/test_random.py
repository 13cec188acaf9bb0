"""Draws are a function of (seed, stream, index) alone."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from freeflow_core.errors import ConfigError
from freeflow_core.math import random
from freeflow_core.math.random import Lookahead, PhiloxDraws


@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True),
    st.integers(0, 2**63 - 1),
    st.sampled_from([(3,), (1, 2, 2), (5, 3)]),
)
@settings(max_examples=50, deadline=None)
def test_each_row_is_what_it_would_be_alone(index, seed, shape):
    together = PhiloxDraws(seed, torch.tensor(index)).noise("z", shape)
    for row, number in enumerate(index):
        alone = PhiloxDraws(seed, torch.tensor([number])).noise("z", shape)
        assert torch.equal(together[row], alone[0])


def test_streams_seeds_and_indices_differ():
    index = torch.arange(1000)
    first = PhiloxDraws(0, index).uniform("time")
    assert len(first.unique()) == 1000
    for other in (PhiloxDraws(0, index).uniform("r"), PhiloxDraws(1, index).uniform("time")):
        assert abs(torch.corrcoef(torch.stack([first, other]))[0, 1]) < 0.1


def test_distributions():
    draws = PhiloxDraws(3, torch.arange(20_000))
    assert stats.kstest(draws.uniform("u").numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(draws.normal("n").numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(draws.rows(torch.arange(500)).noise("z", (4, 8)).flatten().numpy(), "norm").pvalue > 1e-3
    counts = torch.bincount(draws.integers("label", 10), minlength=10)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_pinned_values_never_change():
    """A changed generator would silently change every published number."""
    draws = PhiloxDraws(0, torch.tensor([0, 1, 10**9]), dtype=torch.float64)
    assert [value.hex() for value in draws.uniform("time").tolist()] == [
        "0x1.ac94df9fe0ba0p-1",
        "0x1.f4fa498f3de1fp-2",
        "0x1.67ffbccb9c364p-4",
    ]


@given(
    st.integers(0, 2**40),
    st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True),
    st.lists(st.integers(0, 40), min_size=1, max_size=8),
    st.sampled_from([1, 60, 2**17]),
)
@settings(max_examples=60, deadline=None)
def test_looking_ahead_changes_no_number(start, rows, steps, max_values):
    """Whatever rows a part of the batch holds, in whatever order steps are asked for, as after a restart."""
    lookahead = Lookahead(12, max_values=max_values)
    for step in steps:
        index = torch.tensor(rows) + start + 12 * step
        ahead, plain = PhiloxDraws(5, index, lookahead=lookahead), PhiloxDraws(5, index)
        for subset in (torch.arange(len(rows)), torch.arange(0, len(rows), 2)):
            assert torch.equal(ahead.rows(subset).noise("z", (2,)), plain.rows(subset).noise("z", (2,)))
            assert torch.equal(ahead.rows(subset).uniform("z2"), plain.rows(subset).uniform("z2"))
            assert torch.equal(ahead.rows(subset).normal("z2"), plain.rows(subset).normal("z2"))


def test_draws_made_ahead_survive_what_an_objective_does_to_them():
    lookahead = Lookahead(4)
    first = PhiloxDraws(0, torch.arange(4), lookahead=lookahead, dtype=torch.float64)
    first.noise("z", (3,)).zero_()
    first.uniform("t").zero_()
    assert first.noise("z", (3,)).abs().min() > 0
    assert first.uniform("t").min() > 0


def test_few_calls_serve_many_steps(monkeypatch):
    calls = []
    words = random.philox_words
    monkeypatch.setattr(random, "philox_words", lambda *arguments: calls.append(1) or words(*arguments))
    lookahead = Lookahead(64)
    for step in range(32):
        PhiloxDraws(0, torch.arange(64) + 64 * step, lookahead=lookahead).noise("z", (8,))
    assert len(calls) == 2


def test_micro_batches_are_looked_ahead_for_apart(monkeypatch):
    calls = []
    words = random.philox_words
    monkeypatch.setattr(random, "philox_words", lambda *arguments: calls.append(1) or words(*arguments))
    lookahead = Lookahead(64)
    for first in range(0, 32 * 64, 32):  # two a step
        PhiloxDraws(0, torch.arange(32) + first, lookahead=lookahead).noise("z", (8,))
    assert len(calls) == 8, "16 steps at once: two draws for either, each of a span that is cut"


def test_large_draws_of_the_next_step_are_made_beside_the_present_one(monkeypatch):
    made = []
    words = random.philox_words

    def noted(seed, stream, index, columns):
        made.append((int(index[0]), threading.current_thread() is threading.main_thread()))
        return words(seed, stream, index, columns)

    monkeypatch.setattr(random, "philox_words", noted)
    lookahead = Lookahead(8, max_values=16)
    for first in (0, 8, 16, 40):  # the last is not what was expected
        index = torch.arange(8) + first
        ahead = PhiloxDraws(0, index, lookahead=lookahead).noise("z", (4,))
        assert torch.equal(ahead, PhiloxDraws(0, index).noise("z", (4,)))
    of_the_stream = [first for first, in_main in made if not in_main]
    assert of_the_stream[:2] == [8, 16]
    assert (40, True) in made


@given(st.sampled_from([0.25, 0.5, 0.75, 1 / 8]), st.integers(1, 4), st.integers(1, 4))
def test_split_is_stratified_over_every_part(share, world, accumulation):
    rows, parts = 8, world * accumulation
    inside = []
    for part in range(parts):
        position = torch.arange(rows) + part * rows
        _, chosen = PhiloxDraws(0, position, position=position, batch_size=rows * parts).split(share)
        assert len(chosen) == rows * share
        inside += (position[chosen]).tolist()
    whole = torch.arange(rows * parts)
    _, expected = PhiloxDraws(0, whole, position=whole, batch_size=rows * parts).split(share)
    assert sorted(inside) == expected.tolist()


def test_split_that_cannot_be_even_is_refused():
    position = torch.arange(6)
    with pytest.raises(ConfigError, match="whole number of rows"):
        PhiloxDraws(0, position, position=position, batch_size=12).split(0.25)
