"""Files to dialogues.

In: the names of files, folders and patterns. Out: a `Dialogue` or a `Reject` for each row.

    files.py        which files are read, and what kind each is
    reading.py      files cut into splits, the units of work
    splits.py       a split: some consecutive rows, or where they are in a file
    rows.py         one row in the format of its file
      row_formats.py, messages.py, sharegpt.py, alpaca.py, message.py, tools.py, row_errors.py
    dialogue.py     the result: `Dialogue`, `Message`, `Reject`
"""
