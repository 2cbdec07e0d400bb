"""Dialogues to documents that fit into a sequence.

In: a `Dialogue`. Out: a `TokenBatch`: ids, and for each turn the tokens that carry loss.

    control_tokens.py           a dialogue rendered, under the policy for control tokens in its text
      control_tokens_in_text.py, literal_tokens.py
    token_spans.py              spans of characters to spans of tokens
    overlong.py                 the policy for documents longer than a sequence
"""
