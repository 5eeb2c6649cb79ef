"""``gradstab train -m``: a sweeper and a launcher of Hydra's kind, with gradstab's sweeps behind them."""

from __future__ import annotations

import importlib
import itertools
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher as HydraLauncher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gradstab.cli import optimizing
from gradstab.cli.cells import MOST_CELLS, CombinationError, as_typed, count_of, quick, sweep_params, swept
from gradstab.cli.sweep_session import SweepSession
from gradstab.config import Config, from_hydra, to_container, translate
from gradstab.config.sweep_options import SweepKnobs, objective
from gradstab.console.sweep import SweepView
from gradstab.errors import ConfigError, GradstabError
from gradstab.launchers import LAUNCHERS, build_launcher
from gradstab.sweeps.engine import Cell, Sweep
from gradstab.sweeps.ledger import ENDED, FAILED
from gradstab.sweeps.results import Row, rows_of

_MOST_PROBLEMS = 20
_PLUGINS = "hydra_plugins.gradstab"


# What Hydra makes an instance of finds its command here.
_session = SweepSession()


def begin(knobs: SweepKnobs) -> SweepSession:
    """Make Hydra know the sweepers and the launcher, and start with no cells."""
    global _session
    _session = SweepSession(knobs)
    _register(Grid, SweepLauncher, optimizing.OptunaSweeper)
    # Plugins of Hydra's own, where installed, stand under the same names, and Hydra would hold our files to their keys.
    hydra = ConfigStore.instance().repo.get("hydra", {})
    for group, names in (("launcher", LAUNCHERS), ("sweeper", ("optuna",))):
        for name in names:
            hydra.get(group, {}).pop(f"{name}.yaml", None)
    return _session


def _register(*plugins: type[Any]) -> None:
    """Hydra takes plugins only from a package of one name; a file there would be imported by all who use Hydra."""
    known = Plugins.instance()
    module = sys.modules.setdefault(_PLUGINS, ModuleType(_PLUGINS))
    try:
        parent = importlib.import_module("hydra_plugins")
    except ImportError:
        parent = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
        parent.__path__ = []
    parent.gradstab = module  # type: ignore[attr-defined]
    for plugin in plugins:
        plugin.__module__ = _PLUGINS
        setattr(module, plugin.__name__, plugin)
        known.register(plugin)


class Grid(Sweeper):
    """Every combination, as Hydra's own sweeper takes them, which would compose each cell twice and write a file."""

    def __init__(self, max_batch_size: int | None = None, params: Any = None) -> None:
        if max_batch_size is not None and (not isinstance(max_batch_size, int) or max_batch_size < 1):
            raise ConfigError(f"hydra.sweeper.max_batch_size={max_batch_size}: must be an integer, at least 1, or null")
        self._batch = max_batch_size
        self._params = sweep_params(params)
        self._context: HydraContext
        self._launcher: Any

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before :meth:`sweep`."""
        self._context = hydra_context
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run all combinations; what each batch returned."""
        # Hydra's search for plugins imports this module a second time, so a class of its would be another by then.
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        words = [*(f"{key}={value}" for key, value in self._params.items()), *map(as_typed, arguments)]
        overrides = OverridesParser.create(config_loader=self._context.config_loader).parse_overrides(words)
        # The last word for a key counts.
        overrides = list({override.get_key_element(): override for override in overrides}.values())
        values = {override.get_key_element(): override for override in swept(overrides)}
        self._launcher.searched = set(values)
        for override in overrides:
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise ConfigError(
                    f"{override.input_line}: is endless; allowed: values with commas, choice(...), range(...), "
                    "glob(...), or a search: hydra/sweeper=optuna"
                )
        if math.prod(map(count_of, values.values())) > MOST_CELLS:
            raise ConfigError(
                f"{', '.join(values)}: more than {MOST_CELLS:,} cells; allowed: at most so many in a sweep"
            )
        batches = BasicSweeper.split_arguments(overrides, self._batch)
        if len(batches) > 1:
            _session.expected = sum(map(len, batches))
        numbers = itertools.accumulate(map(len, batches), initial=0)
        return [self._launcher.launch(batch, number) for batch, number in zip(batches, numbers, strict=False)]


class SweepLauncher(HydraLauncher):
    """Hydra's door to ``gradstab.launchers``: ``name`` is a name there, the rest are its knobs.

    ``searched`` are the keys that the sweeper sweeps, None where it does not say.
    """

    def __init__(self, name: str, **knobs: Any) -> None:
        self.searched: set[str] | None = None
        self._name = name
        self._launcher = build_launcher(name, **knobs)
        self._config: DictConfig
        self._context: HydraContext

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        """Called by Hydra before :meth:`launch`."""
        self._config, self._context = config, hydra_context
        quick(hydra_context)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of cells, of which every one is checked before any runs."""
        session, master = _session, self._config
        session.objective = objective(master.get("objective"))
        jobs = [list(overrides) for overrides in job_overrides]
        cells, quiet = self._cells(jobs, initial_job_idx)
        if session.sweep is None:
            folder = Path(master.hydra.sweep.dir)
            expected = master.hydra.sweeper.get("n_trials") or session.expected
            session.view = SweepView(folder, self._name, quiet=quiet, expected=expected)
            session.sweep = Sweep(folder, session.knobs, session.view, quiet=quiet)
        entries = session.sweep.run(cells, self._launcher)
        rows = {row.entry.key: row for row in rows_of(session.sweep.folder, entries)}
        return [
            _returned(rows[entry.key], overrides, session.objective)
            for entry, overrides in zip(entries, jobs, strict=True)
        ]

    def _cells(self, jobs: Sequence[list[str]], first: int) -> tuple[list[Cell], bool]:
        """The batch's cells, and whether they are to be quiet; ConfigError with a line for all that is wrong."""
        fields_of = [_fields(words, jobs, self._config, self.searched) for words in jobs]
        cells: list[Cell] = []
        problems: dict[str, list[str]] = {}
        quiet = True
        for number, (words, fields) in enumerate(zip(jobs, fields_of, strict=True), first):
            cell = Cell(fields, {})
            try:
                config = _composed(self._context.config_loader, self._config, words, number)
                _check_folder(config, self._config)
            except ConfigError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(cell.label)
                continue
            quiet = quiet and config.quiet
            cells.append(Cell(fields, to_container(config) | {"out_dir": None}))
        if problems:
            raise CombinationError(*_told(problems, len(jobs)))
        return cells, quiet


def _composed(loader: Any, master: DictConfig, words: list[str], number: int) -> Config:
    """One cell's checked configuration."""
    try:
        cell = loader.load_sweep_config(master, words)
    except Exception as error:
        raise translate(error, words) from error
    with read_write(cell), open_dict(cell):
        hydra = cell._get_node("hydra")
        hydra.job.num, hydra.job.id = number, str(number)
        # What ${hydra:...} looks into.
        HydraConfig.instance().cfg = SimpleNamespace(hydra=hydra)  # type: ignore[assignment]
        del cell["hydra"]
        if hydra.sweeper.get("params") != master.hydra.sweeper.get("params"):
            name = hydra.runtime.choices.get("experiment")
            raise ConfigError(f"experiment={name}: carries a sweep of its own; allowed: that one alone")
        return from_hydra(cell, [word for word in words if not word.startswith("hydra")])


def _check_folder(config: Config, master: DictConfig) -> None:
    given, folder = config.out_dir, master.hydra.sweep.dir
    if given is not None and Path(given).expanduser() != Path(folder):
        if given == master.get("out_dir"):
            raise ConfigError(f"hydra.sweep.dir={folder}: beside out_dir={given}; allowed: one of the two")
        raise ConfigError(f"out_dir={given}: is the folder of the whole sweep; allowed: one for all cells")


def _fields(
    words: Sequence[str], jobs: Sequence[Sequence[str]], master: DictConfig, searched: set[str] | None
) -> dict[str, str]:
    """The fields that differ: of those that are ``searched``, if the sweeper is ours and says so."""
    common = set(words).intersection(*jobs) if len(jobs) > 1 else set()
    typed = OmegaConf.to_container(master.hydra.overrides.task, resolve=False) or ()
    given = {as_typed(str(word)) for word in typed}
    fields = {}
    for word in words:
        name, _, value = word.partition("=")
        if word not in common and (word not in given if searched is None else name in searched):
            # As it was meant, not as Hydra's grammar has to write it.
            fields[name.lstrip("+~")] = re.sub(r"\\(.)", r"\1", value).strip("\"'")
    return fields


def _told(problems: dict[str, list[str]], cells: int) -> list[str]:
    """A line for each problem, naming the cells that have it where it is not all of them."""
    lines = []
    for problem, labels in problems.items():
        others = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        lines.append(problem if len(labels) == cells else f"{problem} (in cell {labels[0]}{others})")
    more = len(lines) - _MOST_PROBLEMS
    return lines if more <= 0 else [*lines[:_MOST_PROBLEMS], f"and {more} more problems in this sweep"]


def _returned(row: Row, overrides: list[str], figure: str) -> JobReturn:
    """What Hydra's sweeper gets: the objective, NaN where the cell has none, or its failure."""
    if row.entry.status not in ENDED or row.entry.status == FAILED:
        error = GradstabError(f"{row.entry.status}: {row.entry.reason}")
        return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=error)
    value = row.figure(figure)
    return JobReturn(
        overrides=overrides, status=JobStatus.COMPLETED, _return_value=math.nan if value is None else value
    )


def size_of(params: Any) -> str:
    """How many runs an experiment's own sweep has, in words."""
    words = [f"{key}={value}" for key, value in sweep_params(params).items()]
    overrides = OverridesParser.create().parse_overrides(words)
    if not all(override.is_discrete_sweep() or not override.is_sweep_override() for override in overrides):
        return "a search"
    return f"a sweep of {math.prod(map(count_of, swept(overrides)))} runs"
