"""Checkpoints: files that are whole or not there, read without running anything that stands in them."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gradstab.errors import GradstabError
from gradstab.files import replacing
from gradstab.run_directory import CHECKPOINTS

FORMAT = 7
BEST = "best.pt"
_NAME = re.compile(r"step_(\d{8,18})\.pt")

State = dict[str, Any]


def path_of(directory: Path, step: int) -> Path:
    """Where a run's checkpoint after ``step`` steps stands; names sort by step."""
    return directory / CHECKPOINTS / f"step_{step:08d}.pt"


def write(path: Path, identity: str, state: Mapping[str, Any]) -> None:
    """Write a run's state; ``identity`` is that of its configuration."""
    path.parent.mkdir(exist_ok=True)
    content = io.BytesIO()
    # Not into the file: of a full disk, torch only says that it cannot write.
    torch.save({**state, "format": FORMAT, "identity": identity}, content)
    with replacing(path) as file:
        file.write(content.getbuffer())


def read(path: Path, identity: str) -> State:
    """What :func:`write` wrote for a run of this ``identity``; raises :class:`GradstabError` for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise GradstabError(f"{path}: is no checkpoint of gradstab (it is compressed)")
            # torch.load checks no checksums.
            damaged = archive.testzip()
        if damaged is not None:
            raise GradstabError(f"{path}: is damaged in {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise GradstabError(f"{path}: cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        raise GradstabError(f"{path}: is no checkpoint of gradstab (it holds more than numbers and text)") from error
    except (zipfile.BadZipFile, RuntimeError, ValueError, LookupError, TypeError, EOFError, AttributeError) as error:
        raise GradstabError(f"{path}: is damaged or cut off ({type(error).__name__})") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise GradstabError(f"{path}: is no checkpoint of gradstab")
    if content["format"] != FORMAT:
        raise GradstabError(f"{path}: has format {content['format']}, this gradstab reads {FORMAT}")
    if content.get("identity") != identity:
        raise GradstabError(f"{path}: is of a run with another configuration")
    return content


def kept(directory: Path) -> dict[Path, int]:
    """A run's checkpoints and the steps they were written after, the latest first; the best is not among them."""
    found = {}
    for path in (directory / CHECKPOINTS).glob("step_*.pt"):
        name = _NAME.fullmatch(path.name)
        if name and path.is_file():
            found[path] = int(name[1])
    return dict(sorted(found.items(), key=lambda item: item[1], reverse=True))


def latest(
    directory: Path, identity: str, usable: Callable[[State], str | None], say: Callable[[str], None]
) -> State | None:
    """The latest checkpoint that can be read and for which ``usable`` names no obstacle; None where there is none.

    ``say`` is told, in one line each, of those that were passed over.
    """
    for path in kept(directory):
        try:
            state = read(path, identity)
            obstacle = usable(state)
        except GradstabError as error:
            say(f"{error}; passed over")
            continue
        if obstacle is None:
            return state
        say(f"{path}: {obstacle}; passed over")
    return None


def prune(directory: Path, step: int, keep: int) -> None:
    """Remove all but the ``keep`` latest checkpoints up to ``step``, and what a process that died left half written.

    Later ones are of no use: they could not be read, or the run would have gone on from there.
    """
    found = kept(directory)
    useful = [path for path, number in found.items() if number <= step][:keep]
    for path in (*(found.keys() - useful), *_half_written(directory / CHECKPOINTS)):
        path.unlink(missing_ok=True)


def _half_written(folder: Path) -> Iterator[Path]:
    yield from folder.glob(".step_*.pt.*")
    yield from folder.glob(f".{BEST}.*")
