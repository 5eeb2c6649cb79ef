"""Names that follow from what is run, never from the clock: a cell's, its key in the ledger, and a sweep's folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradstab.run_directory import identity

READABLE, READABLE_FOLDER = 100, 60
SHORT = 8


def key_of(settings: Mapping[str, Any]) -> str:
    """A cell's key: 16 hexadecimal digits that follow from its resolved configuration."""
    return identity(settings)[:16]


def group_of(settings: Mapping[str, Any]) -> str:
    """The same for all cells that differ only in their seed."""
    return key_of({name: value for name, value in settings.items() if name != "seed"})


def cell_directory(number: int, swept: Mapping[str, str], key: str) -> str:
    """``007_act=tanh,seed=1_0123abcd``: number, the fields that differ, and the key's beginning."""
    readable = _readable(",".join(f"{name}={value}" for name, value in swept.items()))
    return "_".join(part for part in (f"{number:03d}", readable, key[:SHORT]) if part)


def number_of(directory: str) -> int:
    """The cell's number in its directory's name."""
    digits = re.match(r"\d+", directory, re.ASCII)
    return int(digits[0]) if digits else 0


def cells_in(folder: Path) -> dict[str, str]:
    """The cells' directories that can be seen, by the beginning of their keys; of several, that with the first name."""
    pattern = re.compile(rf"\d{{3,}}_(?:[\w.=,+-]+_)?([0-9a-f]{{{SHORT}}})", re.ASCII)
    try:
        names = sorted((entry.name for entry in os.scandir(folder) if entry.is_dir()), reverse=True)
    except OSError:
        return {}
    return {found[1]: name for name in names if (found := pattern.fullmatch(name))}


def sweep_folder(words: Sequence[str]) -> str:
    """A sweep's folder from the command's words, in any order; ``words`` are those that decide what is run."""
    ordered = sorted(words)
    own = [word for word in ordered if "=" in word and not word.startswith(("hydra", "-"))]
    # What is swept says most of a sweep.
    swept = [word for word in own if word.startswith("experiment=") or re.search(r"[,(]", word)]
    readable = _readable("_".join(swept or own), READABLE_FOLDER) or "sweep"
    return f"{readable}_{_digest(json.dumps(ordered))[:SHORT]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _readable(text: str, longest: int = READABLE) -> str:
    """Text as part of a file's name: without separators, leading dots or anything that a shell would have to quote."""
    plain = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", text))
    if len(plain) > longest:
        plain = plain[:longest].rstrip("=,_.-") + "+"
    return plain.strip("._")
