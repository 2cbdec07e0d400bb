"""Dialogues to text and turn spans: chat templates, rendered as transformers renders them.

In: a `Dialogue` and a chat template. Out: a `RenderedDialogue`: texts, and for each turn the
characters that carry loss; or a `Reject`.

    turn_spans.py               defines what a turn is
      message_regions.py, turn_start.py, turn_end.py, written_turn.py
    render_dialogue.py          finds the turns of a dialogue with Jinja; `tracing/` does so faster
      renders.py, rendered_dialogue.py, slots.py
    loading.py, template_files.py    finds, checks and compiles the template
    chat_template.py            a compiled template
      environment.py, limits.py, markers.py, free_variables.py, modes.py
    message_forms.py            messages in the forms that a template takes
    turn_probes.py              what a template does with all turns of a kind
      made_up.py, made_up_renders.py, probe_results.py, reasoning.py, stop_tokens.py
    written_tokens.py           the control tokens of a template
    hidden_tools.py             refuses rows whose calls or results the model would not see
    dropped_content.py, reasoning_counts.py, unread_keys.py    what the report counts
"""
