"""Learning a template stays within a tenth of the time that rendering takes."""

import pytest

from mtpack.template.tracing import replayer as replayer_module
from mtpack.template.tracing.budget import LearningBudget
from mtpack.template.tracing.replayer import Replayer
from tests.template.test_chat_template import compile_source
from tests.template.tracing.test_replayer import ADDED_TOKENS, CHATML, dialogue, read


class Clock:
    """Seconds that pass only where a test lets them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def spend(budget: LearningBudget, *renders: float, learning: float = 0.0, replayed: bool = False):
    """Count renders that took so many seconds each, then seconds of learning."""
    clock = budget.clock
    for seconds in renders:
        started = clock.now
        clock.now += seconds
        assert budget.add_render(started) == pytest.approx(seconds)
    if learning:
        started = clock.now
        clock.now += learning
        budget.add_learning(started, replayed=replayed)


def test_nothing_is_affordable_before_the_first_render():
    assert not LearningBudget(num_dialogues=10**6, clock=Clock()).affords(1e-6)


def test_learning_gets_a_tenth_of_the_time_that_rendering_took():
    budget = LearningBudget(clock=Clock())
    spend(budget, 6.0, 4.0)
    assert budget.affords(0.99)
    assert not budget.affords(1.01)
    spend(budget, learning=0.6)
    assert budget.affords(0.39)
    assert not budget.affords(0.41)
    spend(budget, 10.0)
    assert budget.affords(1.39)


def test_learning_gets_a_tenth_of_the_time_that_the_input_is_estimated_to_take():
    budget = LearningBudget(num_dialogues=1000, clock=Clock())
    spend(budget, 1.0, 1.0, 1.0, 1.0)
    assert budget.affords(99.9)
    assert not budget.affords(100.1)


def test_probes_in_the_first_renders_do_not_raise_the_estimate():
    budget = LearningBudget(num_dialogues=1000, clock=Clock())
    spend(budget, 50.0)
    assert not budget.affords(5.1)
    spend(budget, 1.0, 1.0, 1.0)
    assert budget.affords(99.9)
    assert not budget.affords(100.1)


def test_a_replay_of_a_new_shape_costs_what_it_takes_longer_than_a_render():
    budget = LearningBudget(clock=Clock())
    spend(budget, 1.0, 1.0, 1.0, 1.0, 1.0)
    spend(budget, learning=1.25, replayed=True)
    assert budget.affords(0.24)
    assert not budget.affords(0.26)
    spend(budget, learning=0.75, replayed=True)
    assert budget.affords(0.49)


def test_without_a_limit_everything_is_affordable():
    assert LearningBudget(share=None, clock=Clock()).affords(1e9)


def test_a_dialogue_is_recorded_only_if_there_is_time(monkeypatch):
    """A render takes a second here, and to compile the template a thousand."""
    template = compile_source(CHATML)
    clock = Clock()

    def render(*arguments):
        clock.now += 1
        return render_dialogue(*arguments)

    render_dialogue = replayer_module.render_dialogue
    monkeypatch.setattr(replayer_module, "render_dialogue", render)
    monkeypatch.setattr(replayer_module, "_SECONDS_PER_CHARACTER", 1000 / len(CHATML))
    for num_dialogues, expected in ((1000, 0), (20_000, 6)):
        budget = LearningBudget(num_dialogues=num_dialogues, clock=clock)
        replayer = Replayer(template, ADDED_TOKENS, "auto", budget=budget)
        for _ in range(10):
            replayer.render_dialogue(read(dialogue("a", "b")))
        assert replayer.replayed == expected
