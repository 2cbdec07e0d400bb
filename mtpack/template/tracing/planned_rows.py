"""Rows that say texts alone, and the plans by which they are written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mtpack.input.dialogue import Dialogue
from mtpack.input.text_rows import TextRows
from mtpack.template.rendered_documents import RenderedDocuments
from mtpack.template.tracing.replayer import MAX_CHARACTERS, Replayer
from mtpack.template.tracing.text_plans import TextPlan
from mtpack.token_batch import Bools, Int64


class PlannedRows:
    """Rows that say texts alone, with the plans for their shapes that are known."""

    def __init__(self, rows: TextRows, replayer: Replayer | None, train_turns: str) -> None:
        """Look for the plans; train_turns: `all` or `last`. Without a replayer, there are none."""
        self._rows = rows
        self._replayer = replayer
        self._shapes, firsts = rows.find_shapes()
        self._sizes = rows.num_bytes()
        self._turns = [_find_turns(rows.list_roles(row), train_turns) for row in firsts.tolist()]
        self._plans: list[TextPlan | None] = [None] * len(firsts)
        self._limits: Int64 = np.full(len(firsts), -1, np.int64)
        """(shapes,): how many bytes a row may have so that the plan can write it."""
        for shape in range(len(firsts)):
            self._look(shape)

    def _look(self, shape: int) -> None:
        if self._replayer is None or self._plans[shape] is not None:
            return
        plan = self._replayer.find_text_plan(*self._turns[shape])
        if plan is not None:
            self._plans[shape], self._limits[shape] = plan, plan.limit_bytes(MAX_CHARACTERS)

    def are_known(self) -> Bools:
        """Return which rows have a plan, (rows,)."""
        known: Bools = self._sizes <= self._limits[self._shapes]
        return known

    def look(self, row: int) -> bool:
        """Return whether a row has a plan by now, also if another row was rendered since."""
        shape = int(self._shapes[row])
        self._look(shape)
        return bool(self._sizes[row] <= self._limits[shape])

    def divide(self, rows: Int64, num_bytes: int) -> list[Int64]:
        """Divide rows into parts whose documents have about `num_bytes` each."""
        if not len(rows):
            return []
        documents = np.array([0 if plan is None else len(plan.num_pieces) for plan in self._plans])
        sizes = np.cumsum(self._sizes[rows] * documents[self._shapes[rows]])
        return np.split(rows, np.flatnonzero(np.diff(sizes // num_bytes)) + 1)

    def fill(
        self, rows: Int64, make_dialogue: Callable[[int], Dialogue]
    ) -> tuple[RenderedDocuments, Int64]:
        """Write the documents of rows with a plan; return them, and the number of turns of each.

        make_dialogue: as for `Replayer.fill_plans`. Raises FastPathFailedError.
        """
        assert self._replayer is not None
        shapes, chosen = np.unique(self._shapes[rows], return_inverse=True)
        plans = [plan for plan in map(self._plans.__getitem__, shapes.tolist()) if plan is not None]
        documents = self._replayer.fill_plans(plans, chosen, self._rows.take(rows), make_dialogue)
        return documents, np.array([plan.row_turns for plan in plans])[chosen]


def _find_turns(roles: tuple[str, ...], train_turns: str) -> tuple[tuple[str, ...], frozenset[int]]:
    """Return roles, and the assistant messages of a dialogue with them that carry no loss."""
    turns = [index for index, role in enumerate(roles) if role == "assistant"]
    return roles, frozenset(turns[:-1] if train_turns == "last" else [])
