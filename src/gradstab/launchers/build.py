"""From a launcher's name and knobs to the launcher."""

from __future__ import annotations

import importlib.util
from typing import Any

from gradstab.config.compose import one_of, read_knobs
from gradstab.errors import ConfigError
from gradstab.launchers import knobs as knobs_of
from gradstab.launchers.task import Launcher

GROUP = "hydra.launcher"
LAUNCHERS = ("serial", "joblib", "submitit_local", "submitit_slurm", "ray")
# The package a launcher stands on is also the name of gradstab's extra that installs it.
_PACKAGES = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}


def build_launcher(name: str, **knobs: Any) -> Launcher:
    """The launcher ``name`` with its knobs checked; :class:`ConfigError` in one line for each thing that is wrong.

    Nothing is imported or started yet beyond gradstab itself.
    """
    if name not in LAUNCHERS:
        raise ConfigError(f"hydra/launcher={name}: {one_of(LAUNCHERS, name)}")
    package = _PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f'hydra/launcher={name}: needs the package {package}; install it with pip install "gradstab[{package}]"'
        )
    if name == "joblib":
        from gradstab.launchers.with_joblib import JoblibLauncher

        return JoblibLauncher(read_knobs(knobs_of.Joblib, knobs, GROUP))
    if name in ("submitit_local", "submitit_slurm"):
        from gradstab.launchers.with_slurm import SlurmLauncher
        from gradstab.launchers.with_submitit import LocalLauncher

        if name == "submitit_local":
            return LocalLauncher(read_knobs(knobs_of.SubmititLocal, knobs, GROUP))
        return SlurmLauncher(read_knobs(knobs_of.SubmititSlurm, knobs, GROUP))
    if name == "ray":
        from gradstab.launchers.with_ray import RayLauncher

        return RayLauncher(read_knobs(knobs_of.Ray, knobs, GROUP))
    from gradstab.launchers.serial import SerialLauncher

    read_knobs(knobs_of.Serial, knobs, GROUP)
    return SerialLauncher()
