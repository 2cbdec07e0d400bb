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


def spend(
    budget: LearningBudget, *renders: float, learning: float = 0.0, replayed: bool = False
) -> None:
    """Count renders that took so many seconds each, then seconds of learning."""
    clock = budget.clock
    for seconds in renders:
        started = clock.now
        clock.now += seconds
        assert budget.add_render(started) == pytest.approx(seconds)
    started = clock.now
    clock.now += learning
    budget.add_learning(started, replayed=replayed)


def find_limit(budget: LearningBudget, replayed: int = 0) -> float:
    """Return the most seconds that are affordable, to the nearest hundredth."""
    return max((n / 100 for n in range(100_000) if budget.affords(n / 100, replayed)), default=-1.0)


def test_nothing_is_affordable_before_the_first_render():
    assert find_limit(LearningBudget(num_dialogues=10**6, clock=Clock())) == 0


def test_learning_gets_a_tenth_of_the_time_that_rendering_took():
    budget = LearningBudget(clock=Clock())
    spend(budget, 6.0, 4.0)
    assert find_limit(budget) == pytest.approx(1, abs=0.01)
    spend(budget, learning=0.6)
    assert find_limit(budget) == pytest.approx(0.4, abs=0.01)
    spend(budget, 10.0)
    assert find_limit(budget) == pytest.approx(1.4, abs=0.01)
    spend(budget, learning=3.0)
    assert find_limit(budget) == -1


def test_learning_gets_a_tenth_of_the_time_that_the_input_is_estimated_to_take():
    budget = LearningBudget(num_dialogues=1000, clock=Clock())
    spend(budget, *[1.0] * 5, learning=20)
    assert find_limit(budget) == pytest.approx(80, abs=0.01)


def test_probes_in_the_first_renders_do_not_raise_the_estimate():
    budget = LearningBudget(num_dialogues=1000, clock=Clock())
    spend(budget, 50.0, 1.0, 20.0, 1.0)
    assert find_limit(budget) == pytest.approx(7.2, abs=0.01)
    spend(budget, 20.0, 1.0)
    assert find_limit(budget) == pytest.approx(100, abs=0.01)


def test_learning_gets_half_of_the_time_that_replays_have_saved():
    budget = LearningBudget(clock=Clock())
    spend(budget, *[1.0] * 10)
    assert find_limit(budget, replayed=100) == pytest.approx(1 + 50, abs=0.01)


def test_the_first_replay_of_a_shape_costs_what_it_takes_longer_than_a_render():
    budget = LearningBudget(clock=Clock())
    spend(budget, *[1.0] * 10)
    spend(budget, learning=1.25, replayed=True)
    assert find_limit(budget, replayed=1) == pytest.approx(1 - 0.25, abs=0.01)


def test_without_a_limit_everything_is_affordable():
    assert LearningBudget(share=None, clock=Clock()).affords(1e9, replayed=0)


def test_a_dialogue_is_recorded_only_if_there_is_time(monkeypatch):
    """A render takes a second here, and to compile the template is estimated to take a thousand."""
    clock = Clock()

    def render(*arguments):
        clock.now += 1
        return render_dialogue(*arguments)

    render_dialogue = replayer_module.render_dialogue
    monkeypatch.setattr(replayer_module, "render_dialogue", render)
    monkeypatch.setattr(replayer_module, "_SECONDS_PER_CHARACTER", 1000 / len(CHATML))
    for num_dialogues, replayed in ((1000, 0), (20_000, 5)):
        budget = LearningBudget(num_dialogues=num_dialogues, clock=clock)
        replayer = Replayer(compile_source(CHATML), ADDED_TOKENS, "auto", budget=budget)
        for _ in range(10):
            replayer.render_dialogue(read(dialogue("a", "b")))
        assert replayer.replayed == replayed
