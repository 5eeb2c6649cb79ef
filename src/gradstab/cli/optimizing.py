"""Optuna behind Hydra's door for sweepers: it chooses each next cell by the objective of those before it.

Hydra's own plugin for Optuna asks for a release below 3, of 2022; a single NaN ends its study, and its storage does not
work with SQLAlchemy 2. This one is Optuna's ask and tell and nothing else. The ledger is its memory: from the same seed
and the same results the same trials follow, so the same command again skips what it finds there and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from gradstab.cli.cells import MOST_CELLS, CombinationError, as_typed, count_of, sweep_params, swept
from gradstab.cli.output import complain
from gradstab.config.compose import read_knobs, takes_whole_numbers
from gradstab.config.fields import MAX_SEED, choice, number
from gradstab.config.sweep_options import objective
from gradstab.errors import ConfigError

RESULTS_FILE = "optimization_results.yaml"
# What an objective wants where the command does not say; of the others nobody can know.
DIRECTIONS = {
    **dict.fromkeys(("test_accuracy", "best_test_accuracy"), "maximize"),
    **dict.fromkeys(("test_loss", "train_loss", "seconds"), "minimize"),
}
_PREFIX = "hydra.sweeper"


@dataclass(frozen=True)
class OptunaKnobs:
    """``n_trials`` cells, ``n_jobs`` of them at a time; ``direction`` follows from most objectives."""

    n_trials: int = number(20, at_least=1)
    n_jobs: int = number(1, at_least=1)
    direction: str | None = choice(None, "maximize", "minimize")
    sampler: str = choice("tpe", "tpe", "random", "gp")
    seed: int = number(0, at_least=0, at_most=MAX_SEED)


class OptunaSweeper(Sweeper):
    """``hydra/sweeper=optuna``: searches ``KEY=choice(...)``, ``range(...)``, ``interval(...)`` and ``a,b,c``."""

    def __init__(self, params: Any = None, **knobs: Any) -> None:
        self.knobs = read_knobs(OptunaKnobs, knobs, _PREFIX)
        self.params = sweep_params(params)
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Any = None
        # None once a trial could be made.
        self._refused: list[ConfigError] | None = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before :meth:`sweep`."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run the trials, batch after batch; what each batch returned."""
        assert self.config is not None
        assert self.hydra_context is not None
        optuna = _optuna()
        figure = objective(self.config.get("objective"))
        direction = self.knobs.direction or DIRECTIONS.get(figure)
        if direction is None:
            raise ConfigError(f"objective={figure}: needs {_PREFIX}.direction; allowed: maximize, minimize")
        words_given = [*(f"{key}={value}" for key, value in self.params.items()), *map(as_typed, arguments)]
        fixed, space = _split(words_given, self.hydra_context.config_loader)
        study = optuna.create_study(sampler=_sampler(self.knobs, optuna), direction=direction)
        self.launcher.searched = {override.get_key_element() for override in space}
        returned: list[Sequence[JobReturn]] = []
        words: dict[int, tuple[str, ...]] = {}
        done = 0
        while done < self.knobs.n_trials:
            trials = [study.ask() for _ in range(min(self.knobs.n_jobs, self.knobs.n_trials - done))]
            for trial in trials:
                words[trial.number] = tuple(_chosen(override, trial) for override in space)
            # A batch may hold one cell twice; it runs once.
            cells = dict.fromkeys(words[trial.number] for trial in trials)
            results = self._launch([[*fixed, *cell] for cell in cells], done)
            by_cell = dict(zip(cells, results, strict=True))
            for trial in trials:
                value = _value(by_cell[words[trial.number]], worst(direction))
                study.tell(trial, value, state=None if value is not None else optuna.trial.TrialState.FAIL)
            returned.append(results)
            done += len(trials)
            self._write(study, words, figure, direction)
        if self._refused is not None:
            raise self._refused[0]
        return returned

    def _launch(self, cells: list[list[str]], done: int) -> Sequence[JobReturn]:
        """Run a batch; a combination that makes no sense is a trial that failed, and said so, not the end."""
        try:
            results: Sequence[JobReturn] = self.launcher.launch(cells, initial_job_idx=done)
            self._accept()
        except CombinationError as error:
            if len(cells) > 1:
                return [self._launch([cell], done + i)[0] for i, cell in enumerate(cells)]
            found = ConfigError(*(f"trial {done}: {problem}" for problem in error.problems))
            if self._refused is None:
                complain(*found.problems)
            else:
                self._refused.append(found)
            return [JobReturn(overrides=cells[0], status=JobStatus.FAILED, _return_value=error)]
        return results

    def _accept(self) -> None:
        """A combination was in order: those that were not are no fault of all of them, and can be told."""
        for refused in self._refused or ():
            complain(*refused.problems)
        self._refused = None

    def _write(self, study: Any, words: dict[int, tuple[str, ...]], figure: str, direction: str) -> None:
        """The best trial so far, where Hydra's own sweepers write theirs."""
        assert self.config is not None
        finite = [trial for trial in study.get_trials() if trial.value is not None and math.isfinite(trial.value)]
        best = (max if direction == "maximize" else min)(finite, key=lambda trial: trial.value, default=None)
        found = {
            "name": "optuna",
            "objective": figure,
            "direction": direction,
            "trials": len(study.get_trials()),
            "best_value": None if best is None else best.value,
            "best_params": {} if best is None else dict(word.split("=", 1) for word in words[best.number]),
        }
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(found), folder / RESULTS_FILE)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("hydra/sweeper=optuna: needs Optuna: pip install 'gradstab[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _sampler(knobs: OptunaKnobs, optuna: Any) -> Any:
    samplers = optuna.samplers
    return {"tpe": samplers.TPESampler, "random": samplers.RandomSampler, "gp": samplers.GPSampler}[knobs.sampler](
        seed=knobs.seed
    )


def _split(words: Sequence[str], loader: ConfigLoader) -> tuple[list[str], list[Override]]:
    """Words that are the same in every cell, and what is to be searched; the last word for a key counts."""
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(words))
    parsed = {override.get_key_element(): override for override in overrides}
    fixed = [str(override.input_line) for override in parsed.values() if not override.is_sweep_override()]
    space = swept(parsed.values())
    if not space:
        raise ConfigError("hydra/sweeper=optuna: nothing to search; add such as optimizer.lr='interval(1e-4,1)'")
    return fixed, space


def _chosen(override: Override, trial: Any) -> str:
    """The trial's word for one key: a number from an interval or a range, or one of several words."""
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        if low is None or high is None or not low < high or (log and low <= 0):
            needed = "a lower end below the upper one" + (" and above 0" if log else "")
            raise ConfigError(f"{override.input_line}: is no interval to search; allowed: {needed}")
        whole = takes_whole_numbers(key.lstrip("+"))
        if whole and (low % 1 or high % 1):
            raise ConfigError(f"{override.input_line}: has ends that {key} does not take; allowed: whole numbers")
        # Hydra makes both ends floats, unless int(...) stands around.
        if whole or (isinstance(low, int) and isinstance(high, int)):
            return f"{key}={trial.suggest_int(key, int(low), int(high), log=log)}"
        # Six digits name a cell readably.
        return f"{key}={trial.suggest_float(key, float(low), float(high), log=log):.6g}"
    if isinstance(value, RangeSweep) and not value.shuffle and isinstance(numbers := value.range(), range):
        first, last = numbers[0], numbers[-1]
        return f"{key}={trial.suggest_int(key, min(first, last), max(first, last), step=abs(numbers.step))}"
    if count_of(override) > MOST_CELLS:
        needed = f"at most {MOST_CELLS:,}, or an interval(low, high)"
        raise ConfigError(f"{override.input_line}: stands for too many values to choose from; allowed: {needed}")
    words = list(override.sweep_string_iterator())
    if getattr(value, "shuffle", False):
        # A search has an order of its own, and the same choices have to be offered each time.
        words.sort()
    return f"{key}={trial.suggest_categorical(key, words)}"


def worst(direction: str) -> float:
    """What a trial is worth that has no figure: what is not there must not look like what is not known."""
    return -math.inf if direction == "maximize" else math.inf


def _value(result: JobReturn, missing: float) -> float | None:
    """What a cell is worth: a diverged one's missing figure is the worst there is; None where the cell failed."""
    if result.status != JobStatus.COMPLETED:
        return None
    value = result.return_value
    return missing if value is None or math.isnan(value) else float(value)
