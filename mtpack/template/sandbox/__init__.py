"""What a chat template may do. It is foreign code, so its operations are counted and limited.

In: the source of a template. Out: a Jinja environment that raises `TemplateLimitError` where a
render does too much. docs/safety.md says what is limited and what is not.
"""
