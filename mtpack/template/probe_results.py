"""Results of probes, kept with the template that they belong to, as long as that exists."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

# Results of one probe: kinds of turns and of messages come from the rows.
_MAX_RESULTS = 1024


ProbeResults = dict[Callable[..., Any], Callable[..., Any]]
"""By probe: a function that runs it once for each kind."""


class Probed(Protocol):
    """What a probe asks: a template, or its renders."""

    @property
    def made_up(self) -> Self:
        """The same with made-up arguments (`ChatTemplate.made_up`)."""

    @property
    def probe_results(self) -> ProbeResults:
        """What probes have found for `made_up`."""


_Asked = TypeVar("_Asked", bound=Probed)
_Rest = ParamSpec("_Rest")
_Result = TypeVar("_Result")


def keep_with_template(
    probe: Callable[Concatenate[_Asked, _Rest], _Result],
) -> Callable[Concatenate[_Asked, _Rest], _Result]:
    """Make a probe run once for each template with made-up arguments, and each kind.

    The first argument of the probe is the template, or its renders; the others are hashable.
    """

    @wraps(probe)
    def find(asked: _Asked, /, *rest: _Rest.args, **named: _Rest.kwargs) -> _Result:
        kept = asked.probe_results.get(probe) or _keep(probe, asked)
        found: _Result = kept(*rest, **named)
        return found

    return find


def _keep(probe: Callable[..., Any], asked: Probed) -> Callable[..., Any]:
    kept = lru_cache(_MAX_RESULTS)(partial(probe, asked.made_up))
    return asked.probe_results.setdefault(probe, kept)
