"""A verdict in the terminal: what was found, on what evidence, and what may mend it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradstab.measure.verdict import HEALTHY, Finding, Remedy, Verdict
from gradstab.wording import counted

MOST_LAYERS = 4
# With less room than this beside them, reasons go below what they are for.
LEAST_REASON = 30
PREDICTED = " (factor per layer that theory predicts)"


def verdict_text(verdict: Verdict) -> RenderableType:
    """All of a verdict, to be wrapped by the terminal, but for remedies: to be printed without cropping."""
    healthy = verdict.labels == (HEALTHY,)
    title = Text.assemble("verdict: ", (", ".join(verdict.labels), "bold green" if healthy else "bold red"))
    parts: list[RenderableType] = [title.append(f"  {_when(verdict)}", style="dim")]
    if verdict.findings:
        parts.append(_indented([(Text(finding.kind, "red"), _evidence(finding)) for finding in verdict.findings]))
    if verdict.remedies:
        predicted = any(remedy.predicted_factor is not None for remedy in verdict.remedies)
        parts.append(Text(f"worth trying, added to the command{PREDICTED if predicted else ''}:"))
        parts.append(_Remedies(verdict.remedies))
    return Group(*parts)


class _Remedies:
    """Overrides, each remedy's on one line however long it is, so that it can be pasted; reasons beside or below."""

    def __init__(self, remedies: Sequence[Remedy]) -> None:
        self._rows = [_remedy(remedy) for remedy in remedies]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        longest = max(cell_len(words.plain) for words, _ in self._rows)
        if longest + 4 + LEAST_REASON <= options.max_width:
            yield _indented(self._rows)
            return
        for words, reason in self._rows:
            yield Text("  ", no_wrap=True, overflow="ignore").append(words)
            yield Padding(reason, (0, 0, 0, 6), expand=False)


def _when(verdict: Verdict) -> str:
    if verdict.step == 0:
        return "before the first update"
    # A step that breaks is looked at, and not made.
    broken = any(finding.kind == "non_finite" and finding.last_step == verdict.step for finding in verdict.findings)
    return f"at step {verdict.step}" if broken else f"after {counted(verdict.step + 1)}"


def _indented(rows: list[tuple[Text, Text]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=0)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", ratio=1)
    for left, right in rows:
        table.add_row("", left, right)
    return table


def _evidence(finding: Finding) -> Text:
    text = Text(finding.explanation)
    if finding.key:
        value = f"{finding.value:.3g} {finding.unit}".rstrip()
        text.append(f" ({finding.quantity}: {value} against {finding.key}={finding.threshold:.10g})", style="dim")
    if finding.layers:
        shown = ", ".join(finding.layers[:MOST_LAYERS])
        more = len(finding.layers) - MOST_LAYERS
        text.append(f"; in {shown}" + (f" and {more} more" if more > 0 else ""))
    if finding.last_step > finding.first_step:
        text.append(f"; since step {finding.first_step}, {finding.persistence} measurements in a row")
    if finding.theory:
        text.append(f"; {finding.theory}")
    return text


def _remedy(remedy: Remedy) -> tuple[Text, Text]:
    factor = remedy.predicted_factor
    predicted = "" if factor is None else f"{factor:.3f}  "
    return Text(" ".join(remedy.overrides), "cyan"), Text.assemble((predicted, "bold"), remedy.reason)
