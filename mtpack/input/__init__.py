"""Reads files into dialogues.

In: the names of files, folders and patterns. Out: a `Dialogue` or a `Reject` for each row.

    files.py        which files are read, and the kind of each
      dataset_folders.py
    reading.py      cuts files into sections without reading them, and sections into splits
      json_text.py, text_files.py, tables.py, table_values.py
    splits.py       a split, which a task reads: consecutive rows, or their position in a file
    rows.py         reads one row in the format of its file
      row_formats.py        which format that is; it says where the messages are
        messages.py, sharegpt.py, alpaca.py
      message.py            reads the messages, in the same way in every format
        loss_switches.py, tools.py, reasoning.py, content.py
      row_keys.py           reads the keys next to them
      json_value.py, strict_json.py, row_errors.py
      row_defaults.py       what the rows of a source get that do not say it themselves
    plain_text.py   reads one row of plain text
    dialogue.py     the result: `Dialogue`, `Reject`
"""
