"""Dialogues to text and turn spans: chat templates, rendered as transformers renders them.

In: a `Dialogue` and a chat template. Out: a `RenderedDialogue`: texts, and for each turn the
characters that carry loss. `turn_spans.py` defines what a turn is. `limits.py` limits what
a template may do. `tracing/` makes rendering fast.
"""
