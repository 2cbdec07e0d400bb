"""The curves of `benchmarks.weighting` as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.weighting_runs import Curve

# Two colours of Okabe and Ito, which differ for every kind of colour vision and in brightness.
# Dashes, markers and hatches make the curves differ without colour.
_STYLES = {
    "token_mean": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "turn_mean": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
}
_HATCHES = {"token_mean": "", "turn_mean": "////"}


def draw_curves(curves: Sequence[Curve], bins: tuple[int, int], path: str | Path) -> None:
    """Draw the held-out loss of short and of long turns over the steps, for both means.

    A line is the mean over the seeds, and its shade goes from the lowest to the highest. The same
    curves give the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "mtpack"
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    longest_short, shortest_long = bins
    titles = {
        "short": f"short turns (up to {longest_short} tokens)",
        "long": f"long turns (from {shortest_long} tokens)",
    }
    for panel, (group, title) in zip(panels, titles.items(), strict=True):
        for normalization, style in _STYLES.items():
            own_curves = [curve for curve in curves if curve.run.normalization == normalization]
            losses = np.array([curve.losses[group] for curve in own_curves])
            steps, name = own_curves[0].steps, normalization.replace("_", " ")
            panel.plot(steps, losses.mean(0), **style, markersize=4, label=f"trained with {name}")
            panel.fill_between(
                steps,
                losses.min(0),
                losses.max(0),
                color=style["color"],
                alpha=0.2,
                linewidth=0,
                hatch=_HATCHES[normalization],
            )
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("held-out loss, mean over turns (nats)")
    panels[1].legend()
    figure.savefig(path, dpi=120, metadata={"Date": None} if Path(path).suffix == ".svg" else None)
