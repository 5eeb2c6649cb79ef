"""What ``gradstab probe`` prints: layer by layer measured beside predicted, the depth factor, the verdict."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradstab.config import Config
from gradstab.console import MAX_ROWS, beside
from gradstab.console.verdict import verdict_text
from gradstab.encoding import Vector
from gradstab.jacobians import Jacobians
from gradstab.probing import Findings
from gradstab.wording import plural, shown_layers

_line = functools.partial(beside, width=12)
_MOST_SEEDS = 4


@dataclass(frozen=True)
class _Column:
    """A quantity's column; ``predicted`` is whether it holds what theory says of it."""

    title: str
    quantity: str
    shown: Callable[[float], str]
    width: int
    predicted: bool = False


def _scale(value: float) -> str:
    return f"{value:.2e}"


def _spread(value: float) -> str:
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e3 or value == 0 else f"{value:.0e}"


def _share(value: float) -> str:
    return "100%" if value == 1 else f"{value:.1%}" if math.isfinite(value) else f"{value}"


# In the order in which they are given room.
_COLUMNS = (
    _Column("‖δ‖", "signal_grad_norm", _scale, 8),
    _Column("theory", "signal_grad_norm", _scale, 8, predicted=True),
    _Column("‖∂L/∂W‖", "grad_norm", _scale, 8),
    _Column("std", "activation_std", _spread, 6),
    _Column("theory", "activation_std", _spread, 6, predicted=True),
    _Column("sat.", "saturated_fraction", _share, 5),
    _Column("theory", "saturated_fraction", _share, 6, predicted=True),
    _Column("dead", "dead_fraction", _share, 5),
    _Column("theory", "dead_fraction", _share, 6, predicted=True),
    _Column("‖ΔW‖/‖W‖", "update_ratio", _scale, 9),
)


def show(config: Config, findings: Findings) -> None:
    """Print all of a probe's findings, fitted to the terminal."""
    console = Console(highlight=False)
    console.print(Text(_headline(config, findings), style="bold"))
    console.print(_layers(findings, console.width))
    rows = [("depth factor", _factor(findings)), *_theory_lines(findings)]
    for title, text in rows:
        console.print(_line(title, text))
    if findings.jacobian is not None:
        console.print(_jacobian_table(findings.jacobian, console.width))
        console.print(_line("Jacobian", _jacobian_text(findings.jacobian)))
    if findings.agreeing < len(findings.labels):
        console.print(_line("draws", _disagreement(findings)))
    console.print(verdict_text(findings.verdict), crop=False)


def _headline(config: Config, findings: Findings) -> str:
    widths = config.model.knobs.get("width")
    shape = f" {findings.hidden} × {widths}" if isinstance(widths, int) and findings.hidden else ""
    count = len(findings.seeds)
    seeds = f"seed {findings.seeds[0]}" if count == 1 else f"seeds {findings.seeds[0]} to {findings.seeds[-1]}"
    return (
        f"{config.model.name}{shape}, {config.act.name}, {config.init.name} · {config.data.name}, "
        f"batch {config.batch} · before training · {seeds}"
    )


def _layers(findings: Findings, width: int) -> Table:
    """Measured beside predicted for evenly spaced layers; what does not fit the terminal is left out, last first."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("layer", no_wrap=True)
    room = width - max(map(len, findings.tags))
    columns = []
    for column in _COLUMNS:
        values = (findings.predicted if column.predicted else findings.measured).get(column.quantity)
        if values is None or not len(values):
            continue
        # The columns of a table without edges stand two apart.
        room -= column.width + 2
        if room < 0:
            break
        columns.append((column, values))
        style = "magenta" if column.predicted else None
        table.add_column(column.title, justify="right", no_wrap=True, min_width=column.width, style=style)
    rows = shown_layers(len(findings.tags), MAX_ROWS)
    for i in rows:
        table.add_row(findings.tags[i], *(_cell(column, values, i) for column, values in columns))
    if len(rows) < len(findings.tags):
        table.caption = f"{len(rows)} of {len(findings.tags)} layers, evenly spaced"
    return table


def _cell(column: _Column, values: Vector, index: int) -> str:
    return column.shown(float(values[index])) if index < len(values) else ""


def _factor(findings: Findings) -> str:
    if findings.factor is None:
        finite = all(map(math.isfinite, findings.measured["signal_grad_norm"][: findings.hidden]))
        reason = "it takes two hidden layers with a gradient" if finite else "the gradients are not finite"
        return f"none: {reason}"
    spread = "" if findings.spread is None else f" ± {findings.spread:.2g}"
    text = f"{findings.factor:.4g}{spread} per layer towards the input, R² {findings.r2:.2f}"
    predicted = findings.theory.get("depth_factor")
    return text if predicted is None else f"{text}; theory {predicted:.4g}"


def _disagreement(findings: Findings) -> str:
    seeds: dict[tuple[str, ...], list[str]] = {}
    for seed, labels in zip(findings.seeds, findings.labels, strict=True):
        if labels != findings.verdict.labels:
            seeds.setdefault(labels, []).append(str(seed))
    others = "; ".join(
        f"{plural(len(own), 'seed')} {', '.join(own[:_MOST_SEEDS])}"
        + (f" and {len(own) - _MOST_SEEDS} more" if len(own) > _MOST_SEEDS else "")
        + f": {', '.join(labels)}"
        for labels, own in seeds.items()
    )
    return f"the verdict below is that of {findings.agreement}; {others}"


def _theory_lines(findings: Findings) -> list[tuple[str, str]]:
    theory = findings.theory
    if "reason" in theory:
        return [("theory", f"none: {theory['reason']}")]
    lines = [("", note) for note in theory["notes"]]
    if findings.scales is not None:
        lines.append(("", _scales_text(findings.scales)))
    return [("theory", lines[0][1]), *lines[1:]] if lines else []


def _scales_text(scales: dict[str, Any]) -> str:
    points = ", ".join(f"{point['q']:.4g} ({point['stability']})" for point in scales["fixed_points"]) or "none"
    text = f"σ_w² {scales['sigma_w2']:.4g}, σ_b² {scales['sigma_b2']:.4g}: fixed points q* {points}"
    if "reason" in scales:
        return f"{text}; {scales['reason']}"
    depths = [("ξ_q", "xi_q"), ("ξ_c", "xi_c"), ("ξ_∇", "xi_grad")]
    known = [f"{name} {_depth(scales[key])}" for name, key in depths if scales[key] is not None]
    where = f"at {scales['q']:.4g}, " if len(scales["fixed_points"]) > 1 else ""
    return f"{text}; {where}χ₁ {scales['chi_1']:.4g}; layers to a change by e: {', '.join(known)}"


def _depth(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.3g}"


def _jacobian_table(found: Jacobians, width: int) -> Table:
    """Singular values of each layer's Jacobian."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("h before → h", no_wrap=True)
    titles = ("mean", "condition", "largest", "smallest", "GSC to y")
    room = width - max(12, *(len(layer.tag) for layer in found.layers))
    fitting = titles[: max(1, min(len(titles), room // 11))]
    for title in fitting:
        table.add_column(title, justify="right", no_wrap=True, min_width=9)
    for layer in found.layers:
        s = layer.spectrum
        values = (s.mean, s.condition, s.largest, s.smallest, layer.gsc)
        table.add_row(layer.tag, *(f"{value:.3g}" for value in values[: len(fitting)]))
    return table


def _jacobian_text(found: Jacobians) -> str:
    s = found.network
    return (
        f"input to outputs: singular values {s.mean:.3g} on average, {s.smallest:.3g} to {s.largest:.3g}, condition "
        f"{s.condition:.3g}; gradient scale coefficient {found.gsc:.3g} ({found.samples} samples, first seed)"
    )
