"""Whether a run that has not come to its end still is on its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradstab.claims import CLAIM_FILE
from gradstab.run_directory import has_checkpoint, status_of


def mend_status(directory: Path, record: dict[str, Any]) -> list[str]:
    """Put the status of a run whose process has died right in run.json's ``record``; what there is to note."""
    notes = []
    if record.get("status") == "running":
        if status_of(directory) == "running":
            sure = "watched" not in record or (directory / CLAIM_FILE).exists()
            notes.append(f"still running{'' if sure else ', or killed'}: no final figures")
        else:
            record["status"] = "interrupted"
            on = has_checkpoint(directory) and "watched" not in record
            notes.append(f"killed: no final figures{' (gradstab train --resume continues it)' if on else ''}")
    return notes
