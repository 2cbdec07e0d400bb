"""What is written as a recipe is read as the same one, whatever its values are."""

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mtpack.options import PackOptions
from mtpack.recipe.load import load_recipe
from mtpack.recipe.sources import Mix, Recipe, Source, Validation
from mtpack.recipe.write import format_own_recipe, format_recipe

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
names = st.text(st.sampled_from("ab ü/*.?=#\"'\\[]"), min_size=1, max_size=8)
json_values = st.recursive(
    st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
numbers = st.floats(1e-6, 1e6)
sources = st.builds(
    Source,
    path=st.lists(st.builds("/data/{}".format, texts), min_size=1, max_size=3).map(tuple),
    name=names.map(str.strip).filter(bool),
    format=st.sampled_from(["auto", "messages"]),
    messages_key=st.none() | texts,
    split=st.none() | texts,
    epochs=numbers,
    max_rows=st.none() | st.integers(1, 2**40),
    system=st.none() | texts,
    template_args=st.none()
    | st.dictionaries(st.sampled_from(["mode", "day", "x1"]), json_values, min_size=1),
    weight=st.floats(1 / 1024, 16384),
    share=st.none() | st.floats(1e-6, 1),
)
options = st.builds(
    PackOptions,
    seq_len=st.integers(2, 9999),
    template_arg=st.lists(st.builds("x={}".format, texts), max_size=2).map(tuple),
    overlong=st.sampled_from(["turns", "split"]),
    overwrite=st.booleans(),
    turn_weights=st.just(True),
    workers=st.integers(0, 3),
)
recipes = st.builds(
    Recipe,
    options=options,
    sources=st.lists(sources, min_size=1, max_size=3, unique_by=lambda source: source.name).map(
        tuple
    ),
    mix=st.none() | st.builds(Mix, by=st.sampled_from(["rows", "tokens"]), total=st.just(5)),
    validation=st.none() | st.builds(Validation, size=st.sampled_from([500, "0.5%"])),
)


def read(text: str) -> Recipe:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, (), {})


@given(recipes)
def test_a_recipe_that_is_written_is_read_as_the_same(recipe):
    found = read(format_recipe(recipe))
    assert replace(found.options, output="packed") == recipe.options
    assert found.sources == recipe.sources
    assert (found.mix, found.validation) == (recipe.mix, recipe.validation)


@given(recipes)
def test_the_recipe_of_an_output_lacks_only_how_the_run_was_done(recipe):
    text = format_own_recipe(recipe)
    found = read(text)
    assert found.sources == recipe.sources
    assert found.options.output_options() == recipe.options.output_options()
    assert "workers" not in text.partition("[[source]]")[0]
    assert "overwrite" not in text.partition("[[source]]")[0]
