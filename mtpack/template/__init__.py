"""Chat templates: rendered as transformers does, and read for where every turn starts and ends."""
