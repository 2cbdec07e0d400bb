"""Renders of a chat template, recorded on a few dialogues and replayed for the others.

In: a `Dialogue` and a chat template. Out: a `RenderedDialogue`, the same that `turn_spans.py` gives
with Jinja, in a fraction of the time. The README of this folder explains why a replay is exact.

    tracers.py, operations.py   values that record what a template does with them
    instrument.py               the template, changed so that it runs on tracers
      filters.py, rewriting.py, closed_macros.py
    recorder.py, automaton.py   the events of one render, and of all recorded renders
    interpreter.py, program.py  the events replayed for a shape; what depends on its texts
      known_renders.py
    slotted_renders.py          the renders of a shape, with slots
    slotted_dialogue.py         its documents and turns, with slots
    replayer.py                 which dialogues are replayed; the audit
    budget.py                   how long it may take to learn a template
"""
