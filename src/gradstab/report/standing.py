"""Whether a run that has not come to its end still is on its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradstab.run_directory import status_of


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
    return notes
