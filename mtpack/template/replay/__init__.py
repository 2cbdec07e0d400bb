"""Trace and replay: a template that was rendered once for a shape is filled in from then on."""
