"""Where units of work run: one function each, with one signature.

A runner takes a function of (pipeline, task), the options that the pipeline is loaded from, and
tasks; it yields the results in the order of the tasks, whatever the order they finish in.
"""
