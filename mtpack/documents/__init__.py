"""Dialogues become documents that fit into a sequence.

In: a `Dialogue`. Out: a `TokenBatch`: token ids, and the loss tokens of every turn.

    control_tokens.py           renders a dialogue under a policy of `--control-tokens`
      control_tokens_in_text.py, literal_tokens.py
    token_spans.py              spans of characters become spans of tokens
      cut_starts.py             encodes the texts, cut at starts that a token would straddle
    plain_text.py               rows of plain text become documents without a template
    overlong.py                 the policies for documents longer than a sequence
"""
