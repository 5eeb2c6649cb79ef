"""What the report says of the first step that was not finite."""

from __future__ import annotations

from gradstab.errors import GradstabError
from gradstab.forensics.snapshot import FOLDER, Snapshot
from gradstab.forensics.story import key_sentences
from gradstab.report.runs import Run
from gradstab.wording import printable


def tell(run: Run) -> None:
    """Give ``run`` the story in a few sentences, where a snapshot was kept; a note where it cannot be read."""
    if "forensics_problem" in run.record:
        run.notes.append(printable(run.record["forensics_problem"]))
    if "forensics" not in run.record:
        return
    try:
        run.story = key_sentences(Snapshot.read(run.directory / FOLDER))
    except GradstabError as error:
        run.notes.append(printable(f"no story of what broke ({error})"))
