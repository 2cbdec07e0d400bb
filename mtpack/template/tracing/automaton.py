"""What is known of a template: a graph of events, grown by recordings and walked by replays.

A node holds the event that comes next, and leads on by its answer. A recording adds the path that
its dialogue took; where a step begins, it goes on at the node of all steps with the same loop and
the same description, so that the graph has circles: what was learned of a message at one place of
one dialogue is known at every place of every other. A walk goes along the answers of another
dialogue. Where its answer is new, nothing is known, and the dialogue is recorded in its turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from mtpack.template.tracing.recorder import Event
from mtpack.template.tracing.tracers import Untraceable


class Node:
    """A place in a template's run: what comes next, and where each answer leads."""

    __slots__ = ("edges", "event")

    def __init__(self) -> None:
        self.event: Event | None = None
        self.edges: dict[Any, Node] = {}


@dataclass(slots=True)
class Automaton:
    """The runs of one template that are known."""

    root: Node = field(default_factory=Node)
    size: int = 0
    """Events that are known."""
    is_contradicted: bool = False
    """Whether nothing is known any more, for good."""
    _steps: dict[Any, Node] = field(default_factory=dict)

    def learn(self, events: list[tuple[Event, Any]]) -> None:
        """Add a recording; raise Untraceable where it contradicts what is known.

        That would mean that a run depends on something beside its answers.
        """
        if self.is_contradicted:
            raise Untraceable("the template is not to be replayed")
        node = self.root
        for event, led_to in events:
            if node.event is None:
                node.event = event
                self.size += 1
            is_step = event.what == "step"
            if node.event != event or (is_step and {led_to, *node.edges} != {led_to}):
                self._give_up()
            if led_to not in node.edges:
                node.edges[led_to] = self._steps.setdefault(led_to, Node()) if is_step else Node()
            node = node.edges[led_to]

    def _give_up(self) -> NoReturn:
        self.is_contradicted = True
        self.root, self._steps = Node(), {}
        raise Untraceable("the same answers led to other events")
