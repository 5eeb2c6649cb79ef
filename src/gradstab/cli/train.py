"""``gradstab train``: compose with Hydra, then hand each configuration to the runner."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradstab.cli.composition import compose
from gradstab.cli.output import FAILED, OK, complain
from gradstab.errors import ConfigError, GradstabError

_exit_codes: list[int] = []


def train(args: Sequence[str]) -> int:
    """Train once, or once for each cell of a sweep; returns the exit code of the worst."""
    _exit_codes.clear()
    compose(args, _run_job)
    return max(_exit_codes, default=OK)


def _run_job(composed: Any) -> None:
    """One run, or one cell of a sweep, whose failure must not stop the others."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from gradstab.config import from_hydra
    from gradstab.run_directory import cell_name

    settings = HydraConfig.get()
    # Unresolved: an interpolation in an override is checked with the rest.
    overrides = list(map(str, OmegaConf.to_container(settings.overrides.task, resolve=False) or ()))
    directory = None
    if settings.mode == RunMode.MULTIRUN:
        directory = Path(settings.sweep.dir) / cell_name(settings.job.num, settings.job.override_dirname)
    try:
        config = from_hydra(composed, overrides)
        if directory is not None and config.out_dir is not None and Path(config.out_dir) != Path(settings.sweep.dir):
            raise ConfigError(f"out_dir={config.out_dir}: is the folder of the whole sweep; allowed: one for all cells")

        from gradstab.expectation import caveats
        from gradstab.runner import run

        complain(*caveats(config))
        run(config, directory)
    except ConfigError as error:
        _exit_codes.append(complain(*error.problems))
    except GradstabError as error:
        complain(str(error))
        _exit_codes.append(FAILED)
    except Exception as error:
        if os.environ.get("GRADSTAB_TRACEBACK"):
            traceback.print_exc()
        complain(f"failed: {type(error).__name__}: {error}".splitlines()[0] + " (GRADSTAB_TRACEBACK=1 shows where)")
        _exit_codes.append(FAILED)
    else:
        _exit_codes.append(OK)
