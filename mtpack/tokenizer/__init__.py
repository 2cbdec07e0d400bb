"""Text to ids, and to the position of each token in the text.

In: the folder or Hub id of a tokenizer, and texts. Out: `EncodedTexts`. `embedded/` holds the small
tokenizer that ships with mtpack.
"""
