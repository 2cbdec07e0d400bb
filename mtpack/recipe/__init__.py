"""Recipes: one file that says what goes into a run.

In: a TOML file, or the arguments of a command. Out: a `Recipe`, with every value checked.

    options.py      (next to this folder) the options of the command, each of them also a key
    sources.py      the tables: sources, the mix, the validation split
    values.py       what the values of keys must be
    load.py         TOML, and what the command line says -> Recipe
    write.py        Recipe -> TOML
"""
