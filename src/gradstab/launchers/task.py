"""What goes to a launcher and what comes back; nothing here knows what a task does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Task:
    """One call of ``work``.

    ``key`` tells it from the others. ``payload`` is JSON-able and opaque to launchers. ``gpu`` says whether it may use
    a GPU where there is one: launchers hand none to a task that stays on the CPU, and need not share any out.
    """

    key: str
    payload: dict[str, Any]
    gpu: bool = True


@dataclass(frozen=True)
class Done:
    """What became of a task: what ``work`` returned, or, where its worker died, ``status`` None and how as one line."""

    task: Task
    status: str | None
    error: str | None = None


# A function at the top of a module, so that other processes can import it.
Work = Callable[[Task], str]


class Launcher(Protocol):
    """Something that calls ``work`` once for each task, somewhere."""

    def launch(self, tasks: Sequence[Task], work: Work) -> Iterator[Done]:
        """Yield each task as it finishes, in any order.

        ``work`` has to bear being called again for a task whose worker died or was preempted. Closing the iterator,
        or an exception inside it such as Ctrl-C's, sends the workers SIGTERM, so that a run can write its checkpoint,
        waits for them, and starts nothing further.
        """
        ...
