"""``gradstab train``: compose with Hydra, then hand each configuration to the runner, or a sweep's to its engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gradstab.cli.composition import compose, options_are_fixed, own_sweep, typed
from gradstab.cli.flags import HYDRA_FLAGS, MULTIRUN
from gradstab.cli.output import FAILED, OK, complain, say, unforeseen
from gradstab.cli.places import asks_for_help
from gradstab.cli.resume import FLAG, asks_to_resume, resume
from gradstab.config import one_of
from gradstab.config.sweep_options import PREFIX, is_sweep_word, objective, sweep_knobs
from gradstab.errors import ConfigError, GradstabError
from gradstab.launchers import LAUNCHERS

USAGE = """\
gradstab train: train a network and record its gradients, layer by layer

usage: gradstab train [OVERRIDES] [options]
       gradstab train -m [OVERRIDES] [options]     a sweep over all combinations
       gradstab train --resume RUN_DIR

overrides (gradstab list has all groups, options and knobs):
  GROUP=OPTION           act=sigmoid, model=lenet5, experiment=vanishing_sigmoid
  GROUP.KNOB=VALUE       model.depth=10, optimizer.lr=0.1
  KEY=VALUE              the run's own: seed, steps or epochs, batch_size,
                         device, precision, quiet and others
  stop_on=KIND,...       end the run on a verdict: vanishing, exploding,
                         dead_units, saturated, non_finite, not_learning
  out_dir=DIR            where the run goes (default: a folder of its own in
                         outputs/train), or all of a sweep (default: one in
                         outputs/sweeps, which the same command finds again)

options:
  -m, --multirun         a sweep
  --resume RUN_DIR       go on with a run that was interrupted or killed
  --config-dir DIR       a run's directory, to repeat that run, or a folder of
                         configurations of your own
  --config-name NAME     which file of those, where it is not train
  --cfg job              show the configuration, do not train
  -h, --help             this text

of a sweep:
  KEY=A,B,C              a cell for each; choice(...), range(...), glob(...) too
  hydra/launcher=NAME    serial (default), joblib, submitit_local,
                         submitit_slurm, ray; their knobs: hydra.launcher.KNOB=
  hydra/sweeper=NAME     grid (default), or optuna, which searches
                         KEY=interval(LOW,HIGH); its knobs: hydra.sweeper.KNOB=
  objective=FIGURE       what a search goes by: test_accuracy (default),
                         test_loss, train_loss, depth_factor and others
  sweep.retry=KIND,...   run failed or diverged cells again
  sweep.force=true       run all cells again
  sweep.fail_fast=true   the first failure ends the sweep

exit codes: 0 completed or diverged, 1 failed, 2 wrong command or configuration,
130 interrupted, 143 terminated
"""
FLAGS = (FLAG, "-h", "--help", *HYDRA_FLAGS)
_exit_codes: list[int] = []
_ONLY_SWEEPS = ("hydra/launcher=", "hydra.launcher.", "hydra/sweeper=", "hydra.sweeper.", "hydra.sweep.")


def train(args: Sequence[str]) -> int:
    """Train once, or once for each cell of a sweep; returns the exit code of the worst."""
    if asks_for_help(args):
        return say(USAGE)
    if asks_to_resume(args):
        return resume(args)
    _exit_codes.clear()
    own = [word for word in args if is_sweep_word(word)]
    words = [word for word in args if word not in own]
    if any(word in MULTIRUN for word in args):
        return _sweep(words, own)
    for word in args:
        if word in own or word.lstrip("+").startswith(_ONLY_SWEEPS):
            raise ConfigError(f"{word}: no effect on a single run; add -m for a sweep")
        if word.lstrip("+").startswith("hydra.run.dir="):
            raise ConfigError(f"{word}: no effect, as a run lies where out_dir says; allowed: out_dir=DIR")
    compose(words, _run_job, FLAGS)
    return max(_exit_codes, default=OK)


def _sweep(words: list[str], own: Sequence[str]) -> int:
    knobs = sweep_knobs([word for word in own if word.startswith(PREFIX)])
    figures = [word.partition("=")[2] for word in own if not word.startswith(PREFIX)]
    if len(figures) > 1:
        raise ConfigError(f"objective={figures[-1]}: was given already as {figures[0]}; allowed: one")
    for word in words:
        group, _, name = word.partition("=")
        if group.lstrip("+") in ("hydra.sweep.subdir", "hydra.run.dir"):
            raise ConfigError(f"{word}: no effect, as a cell's directory follows from its configuration; leave it out")
        if group == "hydra/launcher" and name not in LAUNCHERS:
            raise ConfigError(f"{word}: is no launcher of gradstab's; {one_of(LAUNCHERS, name)}")

    from gradstab.cli.cells import tolerated
    from gradstab.cli.sweep import begin
    from gradstab.cli.sweep_session import conduct, default_folder

    folder = default_folder(words)
    # A run's own config.yaml has no such key, hence the plus signs.
    words = [*map(tolerated, words), *(f"++objective={objective(figure)}" for figure in figures)]
    code = conduct(begin(knobs), lambda: compose(words, _run_job, FLAGS, folder))
    return max(code, *_exit_codes, OK)


def _run_job(composed: Any) -> None:
    """One run."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from gradstab.config import from_hydra

    settings = HydraConfig.get()
    try:
        if settings.mode == RunMode.MULTIRUN:
            chosen = settings.runtime.choices.get("hydra/launcher")
            raise ConfigError(f"hydra/launcher={chosen}: is no launcher of gradstab's; {one_of(LAUNCHERS, '')}")
        if sweep := own_sweep():
            raise ConfigError(f"{sweep}; add -m to run them")
        config = replace(from_hydra(composed, typed()), fixed=options_are_fixed())

        from gradstab.expectation import caveats
        from gradstab.runner import run

        complain(*caveats(config))
        run(config)
    except ConfigError as error:
        _exit_codes.append(complain(*error.problems))
    except GradstabError as error:
        complain(str(error))
        _exit_codes.append(FAILED)
    except Exception as error:
        _exit_codes.append(unforeseen(error))
    else:
        _exit_codes.append(OK)
