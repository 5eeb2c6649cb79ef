"""One task after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradstab.launchers.task import Done, Task, Work


class SerialLauncher:
    """Calls ``work`` here: its exceptions, an interrupt among them, reach whoever iterates."""

    def launch(self, tasks: Sequence[Task], work: Work) -> Iterator[Done]:
        for task in tasks:
            yield Done(task, work(task))
