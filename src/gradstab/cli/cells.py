"""Composing a sweep's cells quickly: Hydra builds each of them from its files anew, a sixth of a second a cell."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gradstab.config import GROUPS
from gradstab.config.words import as_text
from gradstab.errors import ConfigError

# Compositions kept for the next cell; a sweep over more choices than this composes some of them again.
KEPT = 256
# Cells are listed, composed and checked before the first runs.
MOST_CELLS = 100_000
OWN_CONFIGS = ("pkg://hydra.conf", "pkg://gradstab.configs", "structured://")


class CombinationError(ConfigError):
    """Cells make no sense, which is nothing against the sweep that they belong to."""


class CellLoader(ConfigLoaderImpl):
    """Hydra's own loader, whose :meth:`load_sweep_config` gives the same in a twentieth of the time.

    Files only matter to the choices of groups (``act=tanh``), which are composed once and kept; values (``seed=1``)
    are laid over a copy, by Hydra's own function. Several choices are put together from compositions that differ in
    one of them, where each touches keys of its own. Whatever is unusual goes the long way.
    """

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The configuration of one cell, with ``hydra`` in it; see Hydra's own."""
        try:
            cell = self._from_kept(master_config, list(sweep_overrides))
        except Exception:
            # Whatever is wrong with the words is told by the one who always did.
            cell = None
        return super().load_sweep_config(master_config, sweep_overrides) if cell is None else cell

    def _from_kept(self, master: DictConfig, words: list[str]) -> DictConfig | None:
        kept: _Kept | None = self.__dict__.get("_kept")
        if kept is None or kept.master is not master:
            kept = self._kept = _Kept(self, master)
        return kept.cell(words)


class _Kept:
    """What was composed for one sweep: a first cell's choices, and others that differ from it."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self.master = master
        self._loader = loader
        self._parser = OverridesParser.create()
        self._name = master.hydra.job.config_name
        self._hydra_words: list[str] = list(OmegaConf.to_container(master.hydra.overrides.hydra))  # type: ignore[arg-type]
        self._own = all(f"{s.scheme()}://{s.path}" in OWN_CONFIGS for s in loader.get_sources())
        self._parsed: dict[str, tuple[Override, bool]] = {}
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._touched: dict[tuple[str, ...], frozenset[str] | None] = {}
        self._first: tuple[str, ...] | None = None

    def cell(self, words: list[str]) -> DictConfig | None:
        """The cell that ``words`` describe, or None where it has to be composed the long way."""
        parsed = [self._parse(word) for word in words]
        overrides = [override for override, _ in parsed]
        if any(override.is_sweep_override() or override.is_hydra_override() for override in overrides):
            return None
        choices = tuple(word for word, (_, is_choice) in zip(words, parsed, strict=True) if is_choice)
        values = [override for override, is_choice in parsed if not is_choice]
        cell = self._together(choices)
        if cell is None:
            cell = copy.deepcopy(self._compose(choices))
        ConfigLoaderImpl._apply_overrides_to_config(values, cell)
        naming = cell.hydra.job.config.override_dirname
        cell.hydra.overrides.task = words
        cell.hydra.job.override_dirname = get_overrides_dirname(
            overrides=overrides, kv_sep=naming.kv_sep, item_sep=naming.item_sep, exclude_keys=naming.exclude_keys
        )
        OmegaConf.copy_cache(from_config=self.master, to_config=cell)
        return cell

    def _parse(self, word: str) -> tuple[Override, bool]:
        """An override, and whether it chooses a group's option: then it decides which files are read."""
        if word not in self._parsed:
            override = self._parser.parse_overrides([word])[0]
            is_choice = not isinstance(override.value(), dict) and self._loader.repository.group_exists(
                override.key_or_group
            )
            self._parsed[word] = override, is_choice
        return self._parsed[word]

    def _compose(self, choices: tuple[str, ...]) -> DictConfig:
        if choices not in self._composed:
            if len(self._composed) >= KEPT:
                oldest = next(key for key in self._composed if key != self._first)
                del self._composed[oldest]
            self._composed[choices] = self._loader.load_configuration(
                self._name, [*self._hydra_words, *choices], RunMode.RUN
            )
        return self._composed[choices]

    def _together(self, choices: tuple[str, ...]) -> DictConfig | None:
        """The first composition with the parts exchanged that ``choices`` change; None where they may interact.

        They do not where each changes top-level keys of its own. That holds for gradstab's files, whose options fill
        their own group's key and choose nothing for others; of other people's files it is not known.
        """
        if self._first is None:
            self._first = choices
        if not self._own or len(choices) != len(self._first) or choices in self._composed:
            return None
        first, changed = self._first, [i for i, word in enumerate(choices) if word != self._first[i]]
        single = [(*first[:i], choices[i], *first[i + 1 :]) for i in changed]
        parts = [self._touched_by(one) for one in single]
        if len(parts) < 2 or None in parts or sum(map(len, parts)) != len(set().union(*parts)):  # type: ignore[arg-type]
            return None
        cell = copy.deepcopy(self._compose(first))
        with read_write(cell), open_dict(cell):
            for one, part in zip(single, parts, strict=True):
                changed_one = self._compose(one)
                for key in part or ():
                    cell[key] = changed_one._get_node(key)
                chosen = changed_one.hydra.runtime.choices
                was = self._compose(first).hydra.runtime.choices
                cell.hydra.runtime.choices.update({k: v for k, v in chosen.items() if was.get(k) != v})
        return cell

    def _touched_by(self, choices: tuple[str, ...]) -> frozenset[str] | None:
        """The top-level keys in which this composition differs from the first; None where that is not all."""
        if choices not in self._touched:
            assert self._first is not None
            base, other = (_plain(self._compose(c)) for c in (self._first, choices))
            same_kind = base.keys() == other.keys() and _beside_choices(base) == _beside_choices(other)
            keys = frozenset(key for key in base if key != "hydra" and base[key] != other[key])
            self._touched[choices] = keys if same_kind else None
        return self._touched[choices]


def _plain(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=False)  # type: ignore[return-value]


def _beside_choices(plain: dict[str, Any]) -> dict[str, Any]:
    """Hydra's own settings without what says which options were chosen."""
    hydra = plain["hydra"]
    return {
        **hydra,
        "overrides": {**hydra["overrides"], "task": None},
        "job": {**hydra["job"], "override_dirname": None},
        "runtime": {**hydra["runtime"], "choices": list(hydra["runtime"]["choices"])},
    }


def tolerated(word: str) -> str:
    """A knob's word in a form that Hydra lets pass before a cell's own options are chosen, which may be others."""
    if word.partition(".")[0] not in GROUPS:
        return word
    word = as_text(word)
    try:
        swept = OverridesParser.create().parse_override(word).is_sweep_override()
    except (HydraException, ValueError, RecursionError):
        return word
    return word if swept else f"++{word}"


def as_typed(word: str) -> str:
    """The word that was :func:`tolerated`: only under its own name does it replace what a study says of that knob."""
    own = word.removeprefix("++")
    return own if own.partition(".")[0] in GROUPS else word


def sweep_params(params: Any) -> dict[str, Any]:
    """``hydra.sweeper.params``, checked: what an experiment's own sweep sweeps."""
    if params is None or isinstance(params, Mapping):
        return dict(params or {})
    raise ConfigError(f"hydra.sweeper.params={params}: must be keys with their values, such as {{seed: '0,1'}}")


def swept(overrides: Iterable[Override]) -> list[Override]:
    """Those that stand for several values; :class:`ConfigError` for one that stands for none."""
    found = [override for override in overrides if override.is_sweep_override()]
    for override in found:
        value = override.value()
        if isinstance(value, IntervalSweep):
            if not all(end is not None and math.isfinite(end) for end in (value.start, value.end)):
                raise ConfigError(f"{override.input_line}: has no end; allowed: two finite numbers")
            continue
        try:
            count = count_of(override)
        except ArithmeticError as error:
            raise ConfigError(f"{override.input_line}: is no range of numbers; allowed: at least one value") from error
        except (ValueError, HydraException) as error:
            raise ConfigError(f"{override.input_line}: {error}; allowed: at least one value") from error
        if not count:
            raise ConfigError(f"{override.input_line}: stands for no value; allowed: at least one")
    return found


def count_of(override: Override) -> int:
    """How many values a discrete override stands for, counted no further than one beyond ``MOST_CELLS``."""
    value = override.value()
    values = value.range() if isinstance(value, RangeSweep) else override.sweep_string_iterator()
    return sum(1 for _ in itertools.islice(values, MOST_CELLS + 1))


def quick(context: Any) -> None:
    """Let a sweep's ``HydraContext`` compose its cells quickly, for the sweeper's own check of them too."""
    if not isinstance(context.config_loader, CellLoader):
        context.config_loader = CellLoader(context.config_loader.get_search_path())
