"""Figures of what editing did to the weights and to what flows through the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lke_lightning.report.drawing import (
    COLOURS,
    DASHED,
    MUTED,
    NARROW,
    TEXT,
    curves,
    legend,
    line_style,
    logarithmic,
    panels,
    whole_numbers,
)
from lke_lightning.report.reading import RunRecord, Runs, largest, of_each

ROUNDING = 1e-5
"""Singular values below this share of the largest are rounding of float32 and not drawn."""

MOST_LAYERS, MOST_SNAPSHOTS = 6, 4
"""What is drawn of spectra at most: from the first to the last, with some between."""

Part = TypeVar("Part")


def norm_growth(runs: Runs) -> Figure | None:
    """Norm of each edited matrix over edits, in multiples of the unedited one's; of several runs the largest."""
    named = of_each(
        runs, lambda run: largest(run.norm_growth()),
        lambda run: {f"layer {layer}": points for layer, points in run.norm_growth().items()},
    )  # fmt: skip
    figure = curves(named, "norm, multiples of unedited", log=True)
    limit = runs[0].history.norm_limit
    if figure and len(runs) == 1 and limit is not None:
        figure.axes[0].axhline(limit, color=TEXT, lw=1, ls=DASHED)
        figure.axes[0].annotate("limit of the guard", (0.01, limit), xycoords=("axes fraction", "data"), size=7)
    return figure


def matrix_norms(runs: Runs) -> Figure | None:
    """Norm of the MLP output matrix of every block, unedited and edited."""
    found = [(number, run) for number, run in enumerate(runs) if run.drift.matrix_norms]
    if not found:
        return None
    figure, [ax] = panels(1, 1, 2.9, NARROW)
    ax.plot(found[0][1].drift.matrix_norms["before"], color=MUTED, marker="o", label="unedited")
    for number, run in found:
        label = "edited" if len(runs) == 1 else run.name
        ax.plot(run.drift.matrix_norms["after"], label=label, **line_style(number))
    logarithmic(ax, [value for _, run in found for value in run.drift.matrix_norms["after"]])
    ax.set(xlabel="block", ylabel="norm of the MLP's last matrix")
    whole_numbers(ax)
    _mark_edited(ax, found[0][1])
    legend(figure)
    return figure


def key_drift(runs: Runs) -> Figure | None:
    """How much the answers to ordinary keys changed, over edits; of several runs the layer that is worst."""
    named = of_each(
        runs, lambda run: largest(run.drift.key_drift),
        lambda run: {f"layer {layer}": points for layer, points in run.drift.key_drift.items()},
    )  # fmt: skip
    return curves(named, "drift of ordinary keys' answers")


def contributions(runs: Runs) -> Figure | None:
    """Share of every sub-module in what is added to the residual stream, before and after."""
    found = [(number, run) for number, run in enumerate(runs) if run.drift.shares.get("after")]
    if not found:
        return None
    figure, axes = panels(2, 2, 3.0, sharey=True)
    for ax, part in zip(axes, ("attention", "mlp"), strict=True):
        ax.plot(*_blocks(found[0][1].drift.shares["before"], part), color=MUTED, marker="o", label="unedited")
        for number, run in found:
            label = f"after {run.made:,} edits" if len(runs) == 1 else run.name
            ax.plot(*_blocks(run.drift.shares["after"], part), label=label, **line_style(number))
        ax.set(xlabel="block", title="attention" if part == "attention" else "MLP")
        whole_numbers(ax)
    _mark_edited(axes[1], found[0][1])
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("share of the residual stream")
    legend(figure)
    return figure


def spectrum(runs: Runs) -> Figure | None:
    """Singular values of the change of each edited matrix, beside those of the unedited matrix."""
    found = [(number, run) for number, run in enumerate(runs) if run.drift.spectra]
    if not found:
        return None
    first = found[0][1].drift
    layers = _some(list(first.spectra[-1][1]), MOST_LAYERS)
    figure, axes = panels(len(layers), 3, 2.7, sharey=True)
    for ax, layer in zip(axes, layers, strict=True):
        ax.plot(*_above_rounding(first.unedited.get(layer, [])), color=MUTED, ls=DASHED, label="unedited matrix")
        for number, run in found:
            shown = _some(run.drift.spectra, MOST_SNAPSHOTS if len(runs) == 1 else 1)
            for place, (edits, values) in enumerate(shown, 1):
                label = f"change after {edits:,} edits" if len(runs) == 1 else f"change, {run.name}"
                look = line_style(number) | {"marker": "", "alpha": place / len(shown), "label": label}
                ax.plot(*_above_rounding(values.get(layer, [])), **look)
        rank = f", effective rank {first.ranks[layer]:.0f}" if len(runs) == 1 else ""
        ax.set(title=f"layer {layer}{rank}", yscale="log", xlabel="number of the singular value")
        whole_numbers(ax)
    axes[0].set_ylabel("singular value")
    legend(figure)
    return figure


def _mark_edited(axes: Axes, run: RunRecord) -> None:
    for place, layer in enumerate(map(int, run.norm_growth())):
        label = None if place else "edited blocks"
        axes.axvspan(layer - 0.5, layer + 0.5, color=COLOURS[1], alpha=0.12, lw=0, zorder=0, label=label)


def _blocks(shares: dict[str, float], part: str) -> tuple[list[int], list[float]]:
    """Return the numbers of blocks, and the shares of their attention or MLP."""
    found = {int(name.split()[1]): share for name, share in shares.items() if name.startswith(part)}
    return list(found), list(found.values())


def _above_rounding(values: Sequence[float]) -> tuple[range, list[float]]:
    kept = [value for value in values if value > ROUNDING * values[0]]
    return range(1, len(kept) + 1), kept


def _some(parts: Sequence[Part], most: int) -> list[Part]:
    """Choose parts from the first to the last; of one, the last."""
    if len(parts) <= most:
        return list(parts)
    return [parts[-1 - round(i * (len(parts) - 1) / max(1, most - 1))] for i in reversed(range(most))]
