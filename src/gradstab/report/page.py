"""One page for one run or many: self-contained, and nothing in it is taken from a configuration unescaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from gradstab import __version__
from gradstab.report import curves, figures, layer_names, multiples, style, table
from gradstab.report.digest import FINITE, Digest
from gradstab.report.runs import Run
from gradstab.wording import printable

# Lists of layers that differ; a sweep over depth has one for each.
LISTS = 12
STATUSES = ("completed", "diverged", "running", "interrupted", "failed")


@dataclass
class Drawing:
    """A picture with its name (for a file), its title and what it shows."""

    key: str
    title: str
    caption: str
    figure: Figure
    svg: Markup = field(default_factory=Markup)


@dataclass
class Section:
    """All that the page says of one run."""

    run: Run
    row: table.Row
    headline: str
    reason: str
    caption: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    figures: list[Drawing] = field(default_factory=list)
    small: Markup = field(default_factory=Markup)
    layers: tuple[layer_names.Listed, ...] = ()


def drawings(data: Digest, run: Run) -> Iterable[Drawing]:
    """The pictures of one run, as far as it recorded what they show."""
    if data.heatmap is not None:
        text = "log₁₀ of each layer's weight gradient norm ‖∂L/∂W‖, before clipping."
        if data.heatmap.per_column > 1:
            text += f" Each column shows the largest of {data.heatmap.per_column:,} recorded steps."
        if not data.heatmap.even:
            text += " The recorded steps are unevenly spaced: columns stand in their order, all equally wide."
        yield Drawing("heatmap", "Gradient norm over layer and step", text, figures.heatmap(data.heatmap))
    if data.depth is not None:
        name = "‖δ‖, the signal's gradient" if data.depth.quantity == "signal_grad_norm" else "‖∂L/∂W‖"
        why = "The dashed line is mean-field theory at initialisation, scaled to the top hidden layer at step 0."
        if not data.theory:
            reason = run.theory.get("reason") or "step 0 was not measured, or not finite"
            why = f"No line of theory: {reason}."
        text = f"{name}, layer by layer. {why}"
        if data.depth.absent is not None and data.depth.absent.any():
            text += " Layers that no gradient reached, or where it cannot be read, leave a gap."
        yield Drawing("depth_profile", "Depth profile", text, figures.depth_profile(data.depth, data.theory))
    if (fig := figures.activations(data.activations)) is not None:
        text = "Of each hidden layer's activations a, over batch and units, at measured steps."
        if any(profile.unmeasured for profile in data.activations.values()):
            text += " Layers that feed no activation have none, and are left out."
        yield Drawing("activations", "Activation statistics", text, fig)
    if (fig := curves.loss(data.curves)) is not None:
        yield Drawing("loss_accuracy", *_of_loss(data), fig)
    if (fig := curves.clipping(data)) is not None:
        text = "The global gradient norm; no clipping was configured."
        if "watched" in run.record:
            text = "The global gradient norm, before clipping if the loop does any: no change of it was recorded."
        if data.clipped_share is not None:
            share = f"{data.clipped_share:.1%} of the recorded steps were clipped"
            text = f"The global gradient norm before and after; {share}."
        yield Drawing("clipping", "Gradient norm before and after clipping", text, fig)


def _of_loss(data: Digest) -> tuple[str, str]:
    """Title and caption of the picture of losses and accuracy: of what is drawn, and nothing else."""
    train, test, accuracy = (data.curves.get(tag) for tag in ("train/loss", "test/loss", "test/accuracy"))
    tested = " and ".join(word for word, curve in (("loss", test), ("accuracy", accuracy)) if curve is not None)
    parts = ["training loss at each step"] * (train is not None) + [f"test {tested}"] * bool(tested)
    text = "; ".join(parts)
    if any(curve is not None and curve.thinned for curve in (train, test, accuracy)):
        text += ". Line: mean of each bin; band: its smallest and largest value"
    has_loss = train is not None or test is not None
    title = "loss and accuracy" if has_loss and accuracy is not None else "loss" if has_loss else "accuracy"
    return title.capitalize(), f"{text[0].upper()}{text[1:]}."


def _silent(data: Digest) -> list[int]:
    """The layers that got no gradient: no signal came to them, and that of their weights was 0 throughout."""
    if data.depth is None or data.heatmap is None:
        return []
    return [i for i in data.depth.silent if not (data.heatmap.kind[i] == FINITE).any()]


def section(run: Run, data: Digest, index: int, keys: Sequence[str], *, detailed: bool) -> Section:
    """Everything about one run; its pictures only if ``detailed``."""
    reason = printable(run.record.get("reason") or "")
    caption = ", ".join(f"{key}={run.settings[key]}" for key in keys if key in run.settings)
    made = Section(
        run,
        table.row(run, index, keys, data.clipped_share, data.line),
        table.headline(run),
        reason,
        caption or run.name,
        layers=layer_names.listed(run.layers, _silent(data)),
    )
    made.facts = table.facts(run, data.line)
    if detailed:
        for drawing in drawings(data, run):
            drawing.svg = _inline(drawing.figure, f"r{index}{drawing.key}", f"{drawing.title}: {drawing.caption}")
            made.figures.append(drawing)
    return made


def _inline(fig: Figure, prefix: str, label: str) -> Markup:
    # matplotlib escapes every text that it writes.
    return Markup(style.inline(fig, prefix, printable(label)))


def add_small_multiples(sections: Sequence[Section], digests: Sequence[Digest]) -> Markup:
    """Draw each run's small picture with scales that all share; returns their common legend.

    Where captions would look alike, they give way to the runs' names; how many pairs are left out tells nothing apart.
    """
    if len({table.shortened(made.caption).partition(", … ")[0] for made in sections}) < len(sections):
        for made in sections:
            made.caption = made.row.name
    shared = multiples.scales(digests)
    drawer = multiples.Drawer(shared)
    for index, (made, data) in enumerate(zip(sections, digests, strict=True)):
        made.small = _inline(drawer.draw(data), f"m{index}", f"small multiple of {made.row.name}")
    return _inline(multiples.colour_bar(shared), "bar", "colour scale of the heatmaps")


def _summary(sections: Sequence[Section]) -> str:
    statuses = Counter(made.row.status for made in sections)
    verdicts = Counter(label for made in sections for label in made.row.labels)
    parts = [f"{count} {status}" for status, count in statuses.most_common()]
    return (
        ", ".join(parts)
        + ("; " if verdicts else "")
        + ", ".join(f"{count} {label.replace('_', ' ')}" for label, count in verdicts.most_common())
    )


def _lists(sections: Sequence[Section]) -> tuple[list[tuple[str, tuple[layer_names.Listed, ...]]], int]:
    """Each list of layers once, with the runs that have it, and how many more of them there are."""
    owners: dict[tuple[layer_names.Listed, ...], list[str]] = {}
    for made in sections:
        if made.layers:
            owners.setdefault(made.layers, []).append(made.row.name)
    said = [
        (", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else ""), lines)
        for lines, names in owners.items()
    ]
    return said[:LISTS], max(len(said) - LISTS, 0)


def render(
    title: str,
    sections: Sequence[Section],
    keys: Sequence[str],
    colour_bar: Markup,
    missing: Sequence[str] = (),
    *,
    detailed: bool,
) -> str:
    """The page as HTML."""
    folder = resources.files("gradstab.report") / "templates"
    text = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_final, trim_blocks=True)
    environment.filters |= {"n": table.number, "spans": table.spans, "shortened": table.shortened}
    lists, unlisted = _lists(sections)
    return environment.from_string(text["page.html"]).render(
        title=title,
        version=__version__,
        style=Markup(text["page.css"]),
        script=Markup(text["page.js"]),
        sections=sections,
        keys=keys,
        results=table.RESULTS,
        summary=_summary(sections),
        missing=missing,
        colour_bar=colour_bar,
        lists=lists,
        unlisted=unlisted,
        detailed=detailed,
        known_statuses=STATUSES,
    )


def _final(value: Any) -> Any:
    return value if isinstance(value, Markup) else printable(value)
