"""Limits for chat templates. They are foreign code, so their operations are counted and limited.

In: the source of a template. Out: a Jinja environment that raises `TemplateLimitError` if a
render does too much. docs/safety.md says what is limited and what is not.
"""
