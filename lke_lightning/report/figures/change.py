"""Figures of what editing did to the weights and to what flows through the network."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lke_lightning.report.canvas import Draw, Ink, figure, legend, logarithmic, panels, spans, whole_numbers
from lke_lightning.report.figures.exhibit import Exhibit
from lke_lightning.report.reading import RunRecord, Series

ROUNDING = 1e-5
"""Singular values below this share of the largest are rounding of float32 and not drawn."""

MARKED = 40
"""Points that a curve has markers for; more would hide it."""

MOST_PANELS = 6
"""Layers that are drawn of the spectrum; of more, the first and last and some between."""


def norm_growth(runs: Sequence[RunRecord]) -> Draw | None:
    """Norm of each edited matrix over edits, in multiples of the unedited one's; of several runs the largest."""
    if len(runs) == 1:
        grown = runs[0].norm_growth()
        limit = (runs[0].events("guard") or [{}])[-1].get("limits", {}).get("norm_growth")
        return _over_edits(
            {f"layer {layer}": points for layer, points in grown.items()}, "norm, multiples of unedited", 1.0, limit
        )
    largest = {}
    for run in runs:
        by_edits: dict[int, float] = {}
        for points in run.norm_growth().values():
            for edits, value in points:
                by_edits[edits] = max(value, by_edits.get(edits, 0.0))
        largest[run.name] = sorted(by_edits.items())
    return _over_edits(largest, "largest norm, multiples of unedited", 1.0)


def key_drift(runs: Sequence[RunRecord]) -> Draw | None:
    """How differently ordinary keys are answered, over edits; of several runs the layer that is worst."""
    found: dict[str, Series] = {}
    for run in runs:
        for snapshot in run.drift.get("snapshots", []):
            drifts = snapshot["key_drift"]
            named = {f"layer {layer}": value for layer, value in drifts.items()}
            for name, value in (named if len(runs) == 1 else {run.name: max(drifts.values())}).items():
                found.setdefault(name, [(0, 0.0)]).append((snapshot["edits"], value))
    return _over_edits(found, "drift of ordinary keys' answers")


def matrix_norms(runs: Sequence[RunRecord]) -> Draw | None:
    """Norm of the MLP output matrix of every block, unedited and edited."""
    found = [(number, run, run.drift.get("matrix_norms") or {}) for number, run in enumerate(runs)]
    found = [(number, run, norms) for number, run, norms in found if norms]
    if not found:
        return None

    def draw(ink: Ink) -> Figure:
        made, ax = figure()
        before = found[0][2]["before"]
        ax.plot(before, color=ink.muted, marker="o", ms=3.5, lw=1.2, label="unedited")
        for number, run, norms in found:
            ax.plot(norms["after"], label="edited" if len(runs) == 1 else run.name, **ink.line(number))
        _mark_edited(ax, runs[0].edited_layers(), ink)
        values = [value for *_, norms in found for value in norms["after"]]
        if spans(values):
            logarithmic(ax.yaxis, values)
        ax.set(xlabel="block", ylabel="norm of the MLP's last matrix")
        whole_numbers(ax.xaxis, 12)
        legend(made, ax)
        return made

    return draw


def spectrum(runs: Sequence[RunRecord]) -> Draw | None:
    """Singular values of the change of each edited matrix, beside those of the unedited matrix."""
    found = [(number, run, run.drift.get("snapshots") or []) for number, run in enumerate(runs)]
    found = [(number, run, snapshots) for number, run, snapshots in found if snapshots]
    if not found:
        return None
    layers = list(found[0][2][-1]["spectrum"])
    if len(layers) > MOST_PANELS:
        layers = [layers[round(i * (len(layers) - 1) / (MOST_PANELS - 1))] for i in range(MOST_PANELS)]

    def draw(ink: Ink) -> Figure:
        made, axes = panels(len(layers), 3, height=2.7, sharey=True)
        for ax, layer in zip(axes, layers, strict=True):
            unedited = (found[0][1].drift.get("unedited") or {}).get(layer)
            if unedited:
                ax.plot(*_above_rounding(unedited["singular_values"]), color=ink.muted, lw=1.3, ls=(0, (3, 1.5)),
                        label="unedited matrix")  # fmt: skip
            for number, run, snapshots in found:
                shown = _some(snapshots) if len(found) == 1 else snapshots[-1:]
                for place, snapshot in enumerate(shown, 1):
                    if layer not in snapshot["spectrum"]:
                        continue
                    label = f"change after {snapshot['edits']:,} edits" if len(found) == 1 else f"change, {run.name}"
                    style = {"color": ink.colour(number), "alpha": place / len(shown)}
                    if len(found) > 1:
                        style |= {"linestyle": ink.line(number)["linestyle"]}
                    values = snapshot["spectrum"][layer]["singular_values"]
                    ax.plot(*_above_rounding(values), lw=1.6, label=label, **style)
            rank = found[0][2][-1]["spectrum"][layer]["effective_rank"] if len(found) == 1 else None
            ax.set(title=f"layer {layer}" + (f", effective rank {rank:.0f}" if rank else ""), yscale="log")
            ax.set_xlabel("number of the singular value")
            whole_numbers(ax.xaxis, 5)
        axes[0].set_ylabel("singular value")
        legend(made, axes, columns=3)
        return made

    return draw


def contributions(runs: Sequence[RunRecord]) -> Draw | None:
    """Share of every sub-module in what is added to the residual stream, before and after."""
    found = [(number, run, run.drift.get("contributions") or {}) for number, run in enumerate(runs)]
    found = [(number, run, parts) for number, run, parts in found if parts.get("after")]
    if not found:
        return None

    def draw(ink: Ink) -> Figure:
        made, axes = panels(2, 2, height=3.0, sharey=True)
        for ax, part in zip(axes, ("attention", "mlp"), strict=True):
            first = found[0][2]["before"]
            _shares(ax, first, part, color=ink.muted, marker="o", ms=3.5, lw=1.2, label="unedited")
            for number, run, parts in found:
                label = f"after {run.made:,} edits" if len(runs) == 1 else run.name
                _shares(ax, parts["after"], part, label=label, **ink.line(number))
            if part == "mlp":
                _mark_edited(ax, runs[0].edited_layers(), ink)
            ax.set(xlabel="block", title="attention (first: embedding)" if part == "attention" else "MLP")
            ticks = range(-1, (len(first["share"]) - 1) // 2)
            step = max(1, len(ticks) // 10)
            ax.set_xticks([t for t in ticks if t >= 0][::step])
            if part == "attention":
                ax.set_xticks([-1, *ax.get_xticks()], ["emb.", *(f"{t:.0f}" for t in ax.get_xticks())])
        axes[0].set_ylim(bottom=0)  # once all is drawn: it fixes the upper end too
        axes[0].set_ylabel("share of the residual stream")
        legend(made, axes)
        return made

    return draw


def _shares(ax: Axes, told: dict[str, list[float]], part: str, **style: object) -> None:
    points = [
        (-1 if name == "embedding" else int(name.split()[1]), share)
        for name, share in zip(told["submodules"], told["share"], strict=True)
        if name.startswith(part) or (name == "embedding" and part == "attention")
    ]
    ax.plot(*zip(*points, strict=True), **style)


def _over_edits(
    found: dict[str, Series], name: str, level: float | None = None, limit: float | None = None
) -> Draw | None:
    found = {label: points for label, points in found.items() if len(points) > 1}
    if not found:
        return None

    def draw(ink: Ink) -> Figure:
        made, ax = figure()
        for number, (label, points) in enumerate(found.items()):
            style = ink.line(number) | ({} if len(points) <= MARKED else {"marker": ""})
            ax.plot(*zip(*points, strict=True), label=label, clip_on=False, **style)
        values = [value for points in found.values() for _, value in points]
        if level is not None and spans(values):
            logarithmic(ax.yaxis, values, "x{:g}")
        if limit is not None:
            ax.axhline(limit, color=ink.text, lw=1, ls=(0, (3, 1.5)), label="limit of the guard")
        ax.set(xlabel="edits made", ylabel=name)
        ax.set_xlim(left=0)
        whole_numbers(ax.xaxis)
        legend(made, ax, columns=3)
        return made

    return draw


def _mark_edited(ax: Axes, layers: Sequence[int], ink: Ink) -> None:
    for place, layer in enumerate(layers):
        ax.axvspan(layer - 0.5, layer + 0.5, color=ink.colour(1), alpha=0.12, lw=0, zorder=0,
                   label=None if place else "edited blocks")  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _above_rounding(values: Sequence[float]) -> tuple[range, list[float]]:
    kept = [value for value in values if value > ROUNDING * values[0]]
    return range(1, len(kept) + 1), kept


def _some(snapshots: Sequence[dict], count: int = 4) -> list[dict]:
    """Choose some snapshots from the first to the last."""
    if len(snapshots) <= count:
        return list(snapshots)
    return [snapshots[round(i * (len(snapshots) - 1) / (count - 1))] for i in range(count)]


EXHIBITS = (
    Exhibit(
        "norm-growth", "What changed", "Norm growth",
        "Frobenius norm of the edited matrices. Norms that grow without end are the first sign of a model that will "
        "collapse; a good regulariser lets them level off.", norm_growth,
    ),
    Exhibit(
        "matrix-norms", "What changed", "Norms by depth",
        "The same matrix of every block. Edited blocks should not tower above the others.", matrix_norms,
    ),
    Exhibit(
        "key-drift", "What changed", "Ordinary keys",
        "How much the edited matrices answer the keys of ordinary text otherwise than before, relative to what they "
        "answered: sqrt tr(D C D') / sqrt tr(W C W'). What preservation is meant to keep small.", key_drift,
    ),
    Exhibit(
        "contributions", "What changed", "Who fills the residual stream",
        "Mean share of each sub-module in the norms of all that is added to the residual stream, on text that no edit "
        "is about. Edited MLPs that take a growing share drown what the others say (importance hacking).",
        contributions, is_wide=True,
    ),
    Exhibit(
        "spectrum", "What changed", "Spectrum of the change",
        "A change whose largest singular values near those of the matrix itself has taken it over. A steep line is a "
        "change of few directions.", spectrum, is_wide=True,
    ),
)  # fmt: skip
