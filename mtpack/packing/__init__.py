"""Lengths of documents become sequences, and sequences become columns. Only integers and numpy.

In: the lengths of the documents, then a `TokenBatch`. Out: a `Plan`, which says which sequence
holds each document, then `Columns`, the arrays of a shard.

    plan.py             the sequence of every document
      cutting_stock.py, lower_bounds.py
    columns.py          `input_ids`, `labels`, `loss_mask`, `loss_token_num`, `turn_num`, ...
    label_alignment.py  labels at their own tokens, or one token earlier
"""
