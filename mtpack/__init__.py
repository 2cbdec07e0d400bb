"""mtpack: pack multi-turn dialogues into sequences in which every assistant turn weighs the same.

    pack(inputs, seq_len=4096, output="packed")     write shards, return a report
    open_shards("packed")                           read them, row by row, without a copy
    mtpack.torch_data.PackedDataset                 read them as a dataset of torch
    mtpack.loss.turn_mean_loss                      the loss that the columns are for (torch)
    mtpack.loss.linear_turn_mean_loss               the same from hidden states, not from all logits

Names are loaded when they are first used, so `import mtpack` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtpack.version import __version__

if TYPE_CHECKING:
    from mtpack.errors import InputError, MtpackError, SetupError
    from mtpack.options import PackOptions
    from mtpack.running.pack import Callbacks, pack
    from mtpack.shards.dataset import Shards, open_shards
    from mtpack.shards.manifest import PackReport

__all__ = [
    "Callbacks",
    "InputError",
    "MtpackError",
    "PackOptions",
    "PackReport",
    "SetupError",
    "Shards",
    "__version__",
    "open_shards",
    "pack",
]

_HOMES = {
    "InputError": "errors",
    "Callbacks": "running.pack",
    "MtpackError": "errors",
    "PackOptions": "options",
    "PackReport": "shards.manifest",
    "SetupError": "errors",
    "Shards": "shards.dataset",
    "open_shards": "shards.dataset",
    "pack": "running.pack",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
