"""What ``gradstab status`` prints."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from gradstab.console.sweep import STYLES
from gradstab.wording import counted, printable

_BAR = 30


def show(state: Mapping[str, Any]) -> None:
    """Print the state of a sweep or of a run."""
    console = Console(highlight=False)
    lines = _of_sweep(state) if state["kind"] == "sweep" else _of_run(state)
    for line in lines:
        # As many characters, so that styles stay where they are.
        line.plain = printable(line.plain)
        console.print(line, soft_wrap=True)


def _of_sweep(state: Mapping[str, Any]) -> list[Text]:
    counts = {name: n for name, n in state["counts"].items() if n}
    ended = state["done"] + state["counts"]["failed"]
    lines = [Text(f"sweep of {counted(state['cells'], 'cell')} · {state['folder']}", style="bold")]
    filled = round(_BAR * ended / max(1, state["cells"]))
    bar = Text.assemble(("█" * filled, "green"), ("░" * (_BAR - filled), "dim"), f"  {ended}/{state['cells']}")
    if state["seconds_left"] is not None:
        bar.append(f"  about {duration(state['seconds_left'])} left")
    lines.append(bar)
    lines.append(Text(", ").join(Text(f"{n} {name}", STYLES.get(name, "")) for name, n in counts.items()))
    if state["seconds_per_cell"] is not None:
        lines.append(Text(f"{duration(state['seconds_per_cell'])} a cell, on average"))
    for cell in state["running"]:
        parts = [_steps(cell), "" if cell["seconds"] is None else f"for {duration(cell['seconds'])}"]
        where = f"pid {cell['pid']} on {cell['host']}"
        lines.append(Text.assemble(("running  ", "cyan"), "  ".join([cell["directory"], *filter(None, parts), where])))
    for cell in state["failures"]:
        end = f": {cell['reason']}" if cell["reason"] else ""
        see = f" (see {cell['log']})" if cell["status"] == "failed" else ""
        name = cell["status"]
        lines.append(Text.assemble((f"{name}  ", STYLES.get(name, "")), f"{cell['directory']}{end}{see}"))
    if not state["running"] and counts.keys() & {"pending", "interrupted"}:
        lines.append(Text("nothing runs; the command that began this sweep goes on with it"))
    return lines


def _of_run(state: Mapping[str, Any]) -> list[Text]:
    style = STYLES.get(state["status"], "")
    seconds = state["seconds"]
    parts = [_steps(state), "" if seconds is None else duration(seconds)]
    line = Text.assemble((state["status"], style), *(f"  {part}" for part in parts if part))
    lines = [Text(f"run · {state['folder']}", style="bold"), line]
    if isinstance(state["test_accuracy"], float):
        lines.append(Text(f"test accuracy {state['test_accuracy']:.2%}"))
    if state["resumed"]:
        lines.append(Text(f"resumed after step {', '.join(f'{step:,}' for step in state['resumed'])}"))
    # Only whoever wrote a loop that was watched can go on with it.
    if state["status"] == "interrupted" and not state["watched"]:
        lines.append(Text(f"gradstab train --resume {shlex.quote(state['folder'])} continues it"))
    if state["reason"]:
        lines.append(Text(state["reason"] + (f" (see {state['log']})" if state["log"] else "")))
    return lines


def _steps(state: Mapping[str, Any]) -> str:
    if state["steps"] is None:
        return ""
    planned = state["planned_steps"]
    return f"step {state['steps']:,}" + ("" if planned is None else f"/{planned:,}")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
