"""What ``gradstab explain`` prints: the step that broke, the steps before it, what would have caught it, the replay."""

from __future__ import annotations

import functools

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradstab.catching import Catch
from gradstab.console import beside
from gradstab.explaining import Explanation
from gradstab.forensics import story
from gradstab.forensics.snapshot import FOLDER, SNAPSHOT_FILE
from gradstab.forensics.story import number
from gradstab.replay import Trial
from gradstab.wording import counted, printable

_line = functools.partial(beside, width=8)
_ROWS = 10
_SAMPLES = 8


def show(found: Explanation) -> None:
    """Print the whole story, fitted to the terminal."""
    console = Console(highlight=False)
    console.print(Text(found.headline, style="bold"), soft_wrap=not console.is_terminal)
    console.print(Text(f"broke {story.when(found.snapshot)}", style="bold red"), soft_wrap=not console.is_terminal)
    snapshot = found.snapshot
    lines = [
        ("first", story.first(snapshot)),
        ("", story.forward(snapshot)),
        ("", story.weights(snapshot, found.constraint)),
        ("growth", story.grown(snapshot, found.past, found.growth)),
        ("", story.rates(snapshot)),
        ("", story.clipped(snapshot, found.clip)),
    ]
    for title, text in lines:
        if text:
            console.print(_line(title, text))
    if len(snapshot.past.step) > 1:
        console.print(_table(found))
    for i, text in enumerate(clip_lines(found)):
        console.print(_line("" if i else "clip", text))
    if snapshot.batch:
        console.print(_line("batch", _batch(snapshot.batch)))
    console.print(_line("replay", replay_line(found)))
    for note in found.notes:
        console.print(_line("note", note))


def _table(found: Explanation) -> Table:
    """The last steps: loss, norm of all gradients, and of the first, the fastest and the last layer."""
    snapshot, past = found.snapshot, found.snapshot.past
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("step", justify="right", no_wrap=True)
    columns: list[tuple[str, list[float]]] = [("loss", past.loss)]
    if past.global_grad_norm:
        fastest = found.growth.layer if found.growth is not None else None
        shown = dict.fromkeys(i for i in (0, fastest, len(snapshot.layers) - 1) if i is not None)
        columns.append(("‖∂L/∂θ‖", past.global_grad_norm))
        columns += [(snapshot.layers[i], [row[i] for row in past.layer_grad_norm]) for i in shown]
    if past.clip_scale:
        columns.append(("clip scale", past.clip_scale))
    if story.rates(snapshot) is not None:
        columns.append(("rate", past.learning_rate))
    for title, _ in columns:
        table.add_column(title[:16], justify="right", no_wrap=True)
    for i in range(max(0, len(past.step) - _ROWS), len(past.step)):
        broken = past.step[i] == snapshot.step
        table.add_row(
            f"{past.step[i]:,}", *(number(values[i]) for _, values in columns), style="red" if broken else None
        )
    return table


def clip_lines(found: Explanation) -> list[str]:
    """What clipping would have caught it, on what evidence."""
    catch = found.catch
    if catch.max_norm is None:
        return [catch.reason, *_others(catch)]
    words = f"clip=norm clip.max_norm={catch.max_norm:g}"
    if catch.first_step is None:
        acts = f"{words}: every known norm before it broke was lower"
    else:
        early = found.snapshot.step - catch.first_step
        acts = f"{words} would first have acted at step {catch.first_step:,}, {counted(early)} before it broke"
    lines = [acts]
    if catch.proof is None:
        how = f"which takes the run once more: gradstab explain {printable(found.directory)} --prove"
        lines.append(f"not put to the test, {'as nothing can be made again' if found.replay.problem else how}")
    else:
        lines.append(f"run again from the start with it, {_proved(catch.proof, found.planned)}")
    lines += [
        f"with clip.max_norm={trial.max_norm:g} "
        + (f"the loss went to {number(trial.last_loss)}" if trial.finite else f"it broke at step {trial.steps:,}")
        for trial in catch.failed
        if trial.max_norm is not None
    ]
    return lines + _others(catch)


def _proved(proof: Trial, planned: int) -> str:
    whole = f"all {planned:,} steps" if proof.steps == planned else f"its first {proof.steps:,} of {planned:,} steps"
    text = f"{whole} were finite; the loss went from {number(proof.first_loss)} to {number(proof.last_loss)}"
    return text if proof.calm else f"{text}: held, not mended; a smaller optimizer.lr may do that"


def _others(catch: Catch) -> list[str]:
    if not catch.others:
        return []
    acts = [f"clip={name} at step {step:,}" for name, step in catch.others.items()]
    return [f"with its defaults, a limit that is learnt would first have acted: {', '.join(acts)}"]


def _batch(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:_SAMPLES]))
    more = f" … (all in {FOLDER}/{SNAPSHOT_FILE})" if len(indices) > _SAMPLES else ""
    return f"{len(indices):,} samples of the training split: {shown}{more}"


def replay_line(found: Explanation) -> str:
    """Whether the step breaks again."""
    snapshot, replay = found.snapshot, found.replay
    if replay.problem:
        return f"not possible: {replay.problem}"
    what = "the evaluation" if snapshot.quantity == "test loss" else f"step {snapshot.step:,}"
    made = f"{what} once more from {FOLDER}/{snapshot.checkpoint}"
    if not replay.confirmed:
        return f"{made}: not confirmed; this time {_seen(found)}"
    values = "all values are the same bit for bit" if replay.exact else "other values differ a little"
    return f"{made}: confirmed, the same value is the first that is not finite, and {values}"


def _seen(found: Explanation) -> str:
    origin = found.replay.origin
    if origin is None or origin.kind == "unseen":
        return "every value was finite"
    where = " ".join(text for text in (origin.layer, origin.name) if text)
    return f"it was {origin.kind}{f' of {where}' if where else ''}"
