"""Encodes text to ids, and finds the position of each token in the text.

In: the folder or Hub id of a tokenizer, and texts. Out: `EncodedTexts`. `embedded/` contains the
small tokenizer that comes with mtpack.
"""
