"""All recordings of a template as one graph of events, which replays follow.

A node has the next event, and one edge for each answer to it. A recording adds the path of its
dialogue. All steps with the same loop and the same live values are one node, so the graph has
cycles: what was recorded for a message at one position of one dialogue is used at every position of
every other dialogue. A replay follows the answers of another dialogue. Where it comes to an answer
that has no edge, that dialogue is recorded as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from mtpack.template.tracing.recorder import Event
from mtpack.template.tracing.tracers import Untraceable


class Node:
    """A state in a template's run: the next event, and the next node for each answer."""

    __slots__ = ("edges", "event")

    def __init__(self) -> None:
        self.event: Event | None = None
        self.edges: dict[Any, Node] = {}


@dataclass(slots=True)
class Automaton:
    """The recorded runs of one template."""

    root: Node = field(default_factory=Node)
    size: int = 0
    """The number of events."""
    is_contradicted: bool = False
    """Whether two recordings contradicted each other; the template is not replayed any more."""
    _steps: dict[Any, Node] = field(default_factory=dict)

    def learn(self, events: list[tuple[Event, Any]]) -> None:
        """Add a recording; raise Untraceable if it contradicts earlier ones.

        It can do so only if a run depends on something other than its answers.
        """
        if self.is_contradicted:
            raise Untraceable("the template must not be replayed")
        node = self.root
        for event, label in events:
            if node.event is None:
                node.event = event
                self.size += 1
            is_step = event.kind == "step"
            if node.event != event or (is_step and {label, *node.edges} != {label}):
                self._give_up()
            if label not in node.edges:
                node.edges[label] = self._steps.setdefault(label, Node()) if is_step else Node()
            node = node.edges[label]

    def _give_up(self) -> NoReturn:
        self.is_contradicted = True
        self.root, self._steps = Node(), {}
        raise Untraceable("the same answers led to other events")
