"""mtpack: pack multi-turn dialogues into sequences in which every assistant turn weighs the same.

    pack(inputs, seq_len=4096, output="packed")     write shards, return a report
    open_shards("packed")                           read shards, one sequence at a time, as views
    mtpack.torch_data.PackedDataset                 read shards as a dataset of PyTorch
    mtpack.loss.turn_mean_loss                      the loss: every turn has the same weight
    mtpack.loss.linear_turn_mean_loss               the same loss, computed from hidden states

Each name is imported when it is first used, so `import mtpack` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtpack.version import __version__

if TYPE_CHECKING:
    from mtpack.errors import InputError as InputError
    from mtpack.errors import MtpackError as MtpackError
    from mtpack.errors import SetupError as SetupError
    from mtpack.options import PackOptions as PackOptions
    from mtpack.running.callbacks import Callbacks as Callbacks
    from mtpack.running.pack import pack as pack
    from mtpack.shards.dataset import Shards as Shards
    from mtpack.shards.dataset import open_shards as open_shards
    from mtpack.shards.manifest import PackReport as PackReport

_MODULES = {
    "Callbacks": "running.callbacks",
    "InputError": "errors",
    "MtpackError": "errors",
    "PackOptions": "options",
    "PackReport": "shards.manifest",
    "SetupError": "errors",
    "Shards": "shards.dataset",
    "open_shards": "shards.dataset",
    "pack": "running.pack",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
