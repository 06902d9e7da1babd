"""Threads: tried on a stage's own steps, left to others where they use the cores, and without a trace."""

from types import SimpleNamespace

import pytest
import torch

from sftbench.models import threads
from sftbench.models.threads import SLOW_STEPS, TRIED_STEPS, ThreadChooser, keep_threads, thread_counts
from tests.conftest import small_rows
from tests.test_train import run


@pytest.fixture
def four_threads():
    with keep_threads():
        torch.set_num_threads(4)
        yield


def take_steps(chooser, monkeypatch, seconds, others, steps, first=0):
    """Let steps pass of so many seconds by threads while others use so many cores; the threads after each."""
    clock, used = [0.0], []
    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(threads.UsedCores, "others", lambda self: others)
    monkeypatch.setattr(threads.psutil, "cpu_count", lambda: 4)
    for step in range(first + 1, first + steps + 1):
        chooser.on_step_begin(None, None, None)
        clock[0] += seconds[torch.get_num_threads()]
        chooser.on_step_end(None, SimpleNamespace(global_step=step), None)
        used.append(torch.get_num_threads())
    return used


def test_all_threads_and_halves_of_them_are_tried():
    assert [thread_counts(most) for most in (1, 2, 6, 8)] == [[1], [2, 1], [6, 3, 1], [8, 4, 2, 1]]


@pytest.mark.parametrize(("seconds", "others", "chosen"), [
    ({4: 3.0, 2: 1.0, 1: 2.0}, 0.2, 2), ({4: 1.0, 2: 1.5, 1: 2.0}, 0.0, 4),
    ({4: 1.0, 2: 1.5, 1: 2.0}, 2.9, 1), ({4: 1.0, 2: 1.5, 1: 2.0}, 9.0, 1)])
def test_the_fastest_is_taken_of_cores_left(four_threads, monkeypatch, seconds, others, chosen):
    chooser = ThreadChooser(list(range(0, 1000, 10)))
    used = take_steps(chooser, monkeypatch, seconds, others, 3 * TRIED_STEPS + 2)
    assert set(used[:2 * TRIED_STEPS - 1]) == {4, 2} and set(used[-3:]) == {chosen}


def test_steps_that_slow_down_are_tried_anew(four_threads, monkeypatch):
    chooser, tokens = None, list(range(0, 1000, 10))
    chooser = ThreadChooser(tokens)
    assert take_steps(chooser, monkeypatch, {4: 1.0, 2: 2.0, 1: 3.0}, 0.0, 10)[-1] == 4
    slower = {4: 20.0, 2: 9.0, 1: 3.0}
    assert take_steps(chooser, monkeypatch, slower, 0.0, SLOW_STEPS + 3 * TRIED_STEPS, 10)[-1] == 1


def test_threads_change_no_bit_of_what_is_trained(make_model, tokenizer, settings, four_threads):
    results = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        model, _, events = run(make_model(), tokenizer, settings(max_steps=14), small_rows("domain_text", 80))
        results.append(([event.get("loss") for event in events], [*model.parameters()]))
    for losses, weights in results[1:]:
        assert losses == results[0][0]
        assert all(map(torch.equal, weights, results[0][1]))
    assert torch.get_num_threads() == 4
