"""Document lengths to sequences, and sequences to columns. Integers and numpy arrays alone.

In: the lengths of the documents, then a `TokenBatch`. Out: a `Plan`, which says which document goes
where, then `Columns`, the arrays of a shard.

    plan.py             a place for every document
      cutting_stock.py, lower_bounds.py
    columns.py          `input_ids`, `labels`, `loss_mask`, `loss_token_num`, `turn_num`, ...
    label_alignment.py  labels at their own tokens, or at the tokens before
"""
