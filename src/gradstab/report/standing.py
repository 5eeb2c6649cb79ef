"""Whether a run that has not come to its end still is on its way, and whether it was stopped in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradstab.run_directory import resumptions, status_of


def mend_status(directory: Path, record: dict[str, Any]) -> list[str]:
    """Put the status of a run whose process has died right in run.json's ``record``; what there is to note."""
    notes = []
    if record.get("status") == "running":
        if "watched" in record:
            notes.append("still running, or killed: no final figures")
        elif status_of(directory) == "running":
            notes.append("still running: no final figures")
        else:
            record["status"] = "interrupted"
            notes.append("killed: no final figures (gradstab train --resume continues it)")
    steps = resumptions(record)
    if steps:
        notes.append(f"resumed after step {', '.join(map(str, steps))}")
    return notes
