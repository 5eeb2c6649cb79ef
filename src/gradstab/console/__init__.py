"""Everything that a person sees in the terminal during and after a run."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from gradstab.config import Config
from gradstab.console.verdict import verdict_text
from gradstab.measure.depth import over_depth
from gradstab.measure.verdict import Verdict
from gradstab.wording import counted, printable, shown_layers

# Sweeps and `gradstab status` print from here too, and need no torch.
if TYPE_CHECKING:
    from gradstab.measure.recorder import Latest
    from gradstab.parts import Parts
    from gradstab.progress import Display, Outcome

BAR_WIDTH = 18
MAX_ROWS = 24


class PatientConsole(Console):
    """Falls silent when its reader (head, less) goes, where rich would end the process: the run goes on."""

    def on_broken_pipe(self) -> None:
        """Nothing is said from now on, and the interpreter has nothing to flush."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def beside(title: str, text: str, width: int) -> Table:
    """A title in so many columns, and a text that wraps beside it."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=width, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(title, Text(text))
    return grid


class _Quiet:
    """Shows nothing."""

    def progress(self, done: int, latest: Latest) -> None:
        """Nothing to show."""

    def evaluated(self, done: int, loss: float, accuracy: float | None, latest: Latest) -> None:
        """Nothing to show."""


class _Lines:
    """One plain line at each evaluation: for logs and pipes."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps

    def progress(self, done: int, latest: Latest) -> None:
        """Nothing between evaluations."""

    def evaluated(self, done: int, loss: float, accuracy: float | None, latest: Latest) -> None:
        """One line."""
        test = f"test loss {loss:.4g}" + ("" if accuracy is None else f"  accuracy {accuracy:.2%}")
        self._console.print(f"step {done:>6}/{self._steps}  {_state(latest)}  {test}", highlight=False, soft_wrap=True)


class _Bar:
    """A progress bar with the latest values beside it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._test = ""

    def progress(self, done: int, latest: Latest) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, state=f"{_state(latest)}{self._test}")

    def evaluated(self, done: int, loss: float, accuracy: float | None, latest: Latest) -> None:
        """Show the latest result on the test split."""
        self._test = f"  test {loss:.3g}" if accuracy is None else f"  accuracy {accuracy:.1%}"
        self.progress(done, latest)


def _state(latest: Latest) -> str:
    if not latest.layer_grad_norms:
        return f"loss {latest.loss:.4g}"
    first, last = latest.layer_grad_norms[0], latest.layer_grad_norms[-1]
    return f"loss {latest.loss:.3g}  grad {first:.0e} … {last:.0e}"


@contextlib.contextmanager
def display(config: Config, parts: Parts) -> Iterator[Display]:
    """Say what is about to run, and show its progress: a bar in a terminal, lines elsewhere, nothing if quiet."""
    console = PatientConsole()
    if config.quiet:
        yield _Quiet()
        return
    console.print(Text.assemble((headline(config, parts), "bold")), soft_wrap=True)
    if not console.is_terminal:
        yield _Lines(console, config.total_steps)
        return
    columns = (
        BarColumn(10),
        TextColumn("{task.completed:.0f}/{task.total:.0f}", table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=5) as progress:
        yield _Bar(progress, progress.add_task("train", total=config.total_steps, state=""))


def headline(config: Config, parts: Parts) -> str:
    """The run in one line."""
    model = config.model.name
    depth = len(parts.probe.hidden)
    widths = config.model.knobs.get("width")
    shape = f" {depth} × {widths}" if isinstance(widths, int) and depth else f" {depth} hidden layers"
    extras = [f"{g}={o.name}" for g in ("clip", "constraint", "penalty") if (o := getattr(config, g)).name != "none"]
    pieces = [
        f"{model}{shape}, {config.act.name}, {config.init.name}",
        f"{config.optimizer.name} lr={config.optimizer.knobs['lr']:g}",
        *extras,
        f"{config.data.name}, batch {config.batch}",
        f"{counted(config.total_steps)} on {parts.probe.parameters[0].device}",
    ]
    return " · ".join(pieces)


def summary(config: Config, parts: Parts, outcome: Outcome, record: dict[str, Any], directory: Path) -> None:
    """The end of a run: how it went, the gradient through depth, and where to look next."""
    if config.quiet:
        return
    console, shown = PatientConsole(), printable(directory)
    latest = outcome.latest
    if latest.layer_grad_norms:
        console.print(depth_table(parts.probe.tags, latest, console.width))
        console.print(Text(reading(latest)), soft_wrap=True)
    if "verdict" in record:
        console.print(verdict_text(Verdict.from_dict(record["verdict"])), crop=False)
    style = "green" if outcome.status == "completed" else "red"
    console.print(Text(_ending(outcome, record), style=style), soft_wrap=True)
    console.print(Text(f"run          {shown}"), soft_wrap=True)
    console.print(Text(f"TensorBoard  tensorboard --logdir {shown}"), soft_wrap=True)
    if "forensics" in record:
        console.print(Text(f"what broke   gradstab explain {shown}"), soft_wrap=True)
    if "forensics_problem" in record:
        console.print(Text(printable(record["forensics_problem"]), style="red"), soft_wrap=True)


def _ending(outcome: Outcome, record: dict[str, Any]) -> str:
    text = f"{outcome.status} after {counted(outcome.steps)} in {record['seconds']:.1f} s"
    if outcome.reason:
        text += f": {outcome.reason}"
    if record["skipped_steps"]:
        text += f"; {counted(record['skipped_steps'])} skipped"
    if record["clipped_steps"]:
        text += f"; clipped in {counted(record['clipped_steps'])}"
    if outcome.test_accuracy is not None and outcome.best_test_accuracy is not None:
        text += f"; test accuracy {outcome.test_accuracy:.2%} (best {outcome.best_test_accuracy:.2%})"
    elif outcome.evaluated:
        text += f"; test loss {outcome.test_loss:.4g}"
    return text


def depth_table(tags: list[str], latest: Latest, width: int) -> Table:
    """Every layer's gradient norms with a bar on a log scale, the layer nearest the input on top."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    room = (width - max(map(len, tags)) - 2 * len("1.23e-45") - 8) // 2
    bar_width = max(4, min(BAR_WIDTH, room))
    table.add_column("layer", no_wrap=True)
    for name in ("‖∂L/∂W‖", "‖δ‖"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len("1.23e-45"))
        table.add_column("log scale", width=bar_width, no_wrap=True)
    weights, signals = latest.layer_grad_norms, latest.signal_grad_norms
    weight_bars, signal_bars = _log_bars(weights, bar_width), _log_bars(signals, bar_width)
    rows = shown_layers(len(weights), MAX_ROWS)
    for i in rows:
        signal = (f"{signals[i]:.2e}", signal_bars[i]) if signals else ("", "")
        table.add_row(tags[i], f"{weights[i]:.2e}", Text(weight_bars[i], "cyan"), signal[0], Text(signal[1], "magenta"))
    if len(rows) < len(weights):
        table.caption = f"{len(rows)} of {len(weights)} layers, evenly spaced"
    return table


def _log_bars(values: list[float], width: int) -> list[str]:
    """A bar for each value: empty for 0, its length the value's place between smallest and largest, in decades."""
    logs = [math.log10(v) if 0 < v < math.inf else None for v in values]
    known = [x for x in logs if x is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    # At least two decades, so that a flat profile looks flat.
    low = min(low, high - 2)
    eighths = " ▏▎▍▌▋▊▉"
    bars = []
    for value, x in zip(values, logs, strict=True):
        if x is None:
            bars.append("" if value == 0 else "not finite")
            continue
        length = round((1 + (width - 1) * (x - low) / (high - low)) * 8)
        bars.append("█" * (length // 8) + eighths[length % 8].strip())
    return bars


def reading(latest: Latest) -> str:
    """One line on the last profile: what the signal's gradient does per layer, and over the whole depth."""
    depth, hidden = latest.depth, latest.signal_grad_norms[:-1]
    if hidden and all(value == 0 for value in hidden):
        return "no gradient reaches the hidden layers"
    if depth is None:
        return "too few hidden layers for a depth factor"
    when = "" if latest.depth_step == latest.measured_step else f"at step {latest.depth_step}, "
    return (
        f"{when}going towards the input, δ changes by a factor of {depth.factor:.3f} per layer "
        f"(R² {depth.r2:.2f}), {over_depth(depth.factor, depth.layers)} over {depth.layers} layers"
    )
