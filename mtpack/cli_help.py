"""What the command line tells a person who asks: examples in `--help`, and shell completion."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

# For each command: what an example does, and what to type. tests/test_docs.py runs them in order.
EXAMPLES = {
    "mtpack": (
        (
            "pack the dialogues of a folder for a model",
            "mtpack pack data --tokenizer path/to/model",
        ),
        ("see what will be trained", "mtpack inspect packed"),
        ("prove that packing does not change the loss", "mtpack verify packed"),
    ),
    "pack": (
        (
            "pack files for a model that is in a folder",
            "mtpack pack data/*.jsonl.gz --tokenizer path/to/model --seq-len 8192 -o my_packed",
        ),
        (
            "write bad rows to a file and continue",
            "mtpack pack data --on-error skip -o my_packed --overwrite",
        ),
        (
            "read JSON lines from another program",
            "zcat data/*.gz | mtpack pack - -o from_a_program",
        ),
        (
            "pack what a recipe says, with other options than it has",
            "mtpack pack --config my_packed/recipe.toml --seed 1 -o from_a_recipe",
        ),
        (
            "for Megatron-LM with 4 context-parallel ranks",
            "mtpack pack data --label-alignment shifted --pad-documents-to 8 -o for_megatron",
        ),
    ),
    "inspect": (
        ("show the figures of an output", "mtpack inspect packed"),
        ("show a sequence: its turns, loss tokens and weights", "mtpack inspect packed --row 0"),
        ("print the figures for a program", "mtpack inspect packed --json"),
    ),
    "verify": (
        ("check an output", "mtpack verify packed"),
        ("check the model that you train as well", "mtpack verify packed --model path/to/model"),
    ),
}


# The headings under which options of `pack` are shown: the fields of `PackOptions`, and the recipe.
OPTION_GROUPS = {
    "Input": ("config", "format", "messages_key", "split", "on_error"),
    "Tokenizer and chat template": (
        *("tokenizer", "chat_template", "template_arg", "date"),
        *("tool_arguments", "control_tokens", "tokenizer_engine"),
    ),
    "What is trained": ("merge", "train_turns", "turn_weights", "overlong"),
    "Sequences": ("seq_len", "packing", "label_alignment", "pad_documents_to", "seed", "window"),
    "Output": ("output", "shard_size", "compression", "ipc_format", "overwrite"),
    "Processes and their limits": (
        *("workers", "executor", "ray_address", "work_dir", "token_store"),
        *("no_cache", "unit_timeout", "render_seconds", "render_memory"),
    ),
}
_OTHERS = "Options"


class _PathName(click.types.StringParamType):
    """A path, a URL or another name: checked where it is used; a shell completes files."""

    name = "path"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the item that makes a shell complete the names of files and folders."""
        return [CompletionItem(incomplete, type="file")]


PATH_NAME = _PathName()


class GroupedOption(click.Option):
    """An option that is shown under the heading that `OPTION_GROUPS` has for it."""


class CommandWithExamples(click.Command):
    """A command that shows its options in groups, and its `EXAMPLES` at the end of its help."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each under its heading."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        for heading in (*OPTION_GROUPS, _OTHERS):
            group = [option for option in options if _heading_of(option) == heading]
            records = [record for option in group if (record := option.get_help_record(ctx))]
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        _write_examples(self, formatter)


class GroupWithExamples(click.Group):
    """A group of commands that show examples, as it does itself."""

    command_class = CommandWithExamples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        _write_examples(self, formatter)


def _heading_of(option: click.Option) -> str:
    if isinstance(option, GroupedOption):
        for heading, names in OPTION_GROUPS.items():
            if option.name in names:
                return heading
    return _OTHERS


def _write_examples(command: click.Command, formatter: click.HelpFormatter) -> None:
    with formatter.section("Examples"):
        for purpose, line in EXAMPLES[command.name or ""]:
            formatter.write(f"  # {purpose}\n  {line}\n")
