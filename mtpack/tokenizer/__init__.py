"""Tokenizers: found, checked, loaded, and the small one that ships with mtpack."""
