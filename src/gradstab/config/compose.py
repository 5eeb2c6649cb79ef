"""From what Hydra composed to a checked, frozen :class:`Config`, and back to plain containers."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, asdict, fields, make_dataclass
from dataclasses import field as dataclass_field
from typing import Any, TypeVar, get_type_hints

from gradstab.config.fields import LARGEST, problem_with
from gradstab.config.registry import OPTIONS, Option
from gradstab.config.rules import check_rules, resolve
from gradstab.config.run import GROUPS, Config, Run
from gradstab.errors import ConfigError
from gradstab.wording import shown

T = TypeVar("T")

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
# Text that YAML takes for something else unless it is in quotes.
_READ_AS_OTHER = re.compile(r"[-+]?[.\d][\d_.eE+-]*|true|false|null", re.IGNORECASE)
# Composed with a run, as an experiment may carry it, and no part of its configuration.
_OF_THE_SWEEP = ("objective",)
WITHOUT_DEFAULTS = (
    "nothing to choose from: a run's own config.yaml fixes its options (allowed: knobs, and scalars such as seed=1); "
    "a configuration of your own begins with defaults: [train, _self_]"
)


def register_schema() -> None:
    """Put every option under ``schema/<group>`` into Hydra's ConfigStore.

    The schema fixes which keys exist and their defaults. Types and ranges are checked by :func:`from_hydra`, all
    at once and in gradstab's words.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=_schema_of(Run, *GROUPS, *_OF_THE_SWEEP))
    for group, options in OPTIONS.items():
        for name, option in options.items():
            store.store(group=f"schema/{group}", name=name, node=_schema_of(option))


def _schema_of(cls: type[Any], *groups: str) -> type[Any]:
    """A twin of a frozen dataclass that Hydra can merge into, with room for the groups' options."""
    knobs = [(f.name, Any, dataclass_field(default=f.default)) for f in fields(cls)]
    return make_dataclass(cls.__name__, [*knobs, *((group, Any, dataclass_field(default=None)) for group in groups)])


def to_container(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts, scalars first, in the order of the schema: what config.yaml holds."""
    whole = asdict(config)
    del whole["n_train"], whole["written"], whole["fixed"]
    return whole


def flat(container: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; an option's name stands under its group's own key."""
    found: dict[str, Any] = {}
    for key, value in container.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix.removesuffix(".") if key == "name" and prefix else f"{prefix}{key}"] = value
    return found


def from_hydra(composed: Any, overrides: Sequence[str] = ()) -> Config:
    """Check a composed configuration (a DictConfig or nested mappings) and freeze it.

    ``overrides`` are the command line's own words: a knob that was set there although it has no effect is an
    error, even at its default value. Raises :class:`ConfigError` with one line for each thing that is wrong.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(composed, DictConfig):
        try:
            composed = OmegaConf.to_container(composed, resolve=True)
        except OmegaConfBaseException as error:
            key = str(getattr(error, "full_key", ""))
            # A sweep's cell has the word as Hydra's grammar writes it.
            plain = (re.sub(r"\\(.)", r"\1", text) for text in overrides)
            word = next((text for text in plain if text.lstrip("+").partition("=")[0] == key), key)
            reason = str(error).splitlines()[0].removeprefix("KeyError raised while resolving interpolation: ")
            raise ConfigError(f"{word}: cannot be resolved ({reason}); allowed: plain values, ${{KEY}}") from error
    if not isinstance(composed, Mapping):
        raise ConfigError(f"the configuration is {composed!r}: it must be a mapping of keys to values")

    composed = {key: value for key, value in composed.items() if key not in _OF_THE_SWEEP}
    explicit = {key for text in overrides for key in _keys(text)}
    renamed = [key.removesuffix(".name") for key in sorted(explicit) if key in {f"{group}.name" for group in GROUPS}]
    if renamed:
        raise ConfigError(*(f"{group}.name: is no knob; choose with {group}=OPTION" for group in renamed))
    if all(composed.get(group) is None for group in GROUPS):
        raise ConfigError(f"{', '.join(GROUPS)}: chosen nowhere; write defaults: [train, _self_] in the configuration")
    scalars = [f.name for f in fields(Run)]
    removed = [key for text in overrides if text.startswith("~") and (key := text[1:].partition("=")[0]) in scalars]
    if removed:
        raise ConfigError(*(f"~{key}: cannot be taken out; allowed: {key}=VALUE" for key in removed))
    problems = _unknown_keys(composed, [*scalars, *GROUPS])
    words = [text.lstrip("+~") for text in overrides if "$" not in text]
    typed = {word.partition("=")[0]: word for word in words}
    values = _read_fields(Run, composed, "", problems, typed)
    for group in GROUPS:
        values[group] = _read_option(group, composed.get(group), problems, typed)
    if problems:
        raise ConfigError(*problems)
    config = resolve(values, explicit)
    check_rules(config, explicit)
    return config


def _keys(text: str) -> Iterator[str]:
    """The keys that an override sets: the one it names, and those of a mapping behind it."""
    key, _, value = text.partition("=")
    yield (key := key.lstrip("+~"))
    if key in GROUPS and value.startswith("{"):
        yield from (f"{key}.{knob}" for knob in re.findall(r"[{,]\s*(\w+)\s*:", value))


def _read_option(group: str, node: Any, problems: list[str], typed: Mapping[str, str]) -> Option | None:
    name = node.get("name") if isinstance(node, Mapping) else node
    cls = OPTIONS[group].get(name) if isinstance(name, str) else None
    if isinstance(node, Mapping) and name is None:
        fitting = (n for n, cls in OPTIONS[group].items() if set(node) <= {f.name for f in fields(cls)})
        wanted = f"name: {next(fitting, 'OPTION')}; {one_of(OPTIONS[group], '')}"
        problems.append(f"{typed.get(group, group)}: its file names no option; write in it {wanted}")
        return None
    if node is None:
        problems.append(f"{group}: a group cannot be empty; {one_of(OPTIONS[group], '')}")
        return None
    if cls is None or not isinstance(node, Mapping):
        problems.append(f"{group}={name}: {one_of(OPTIONS[group], str(name))}")
        return None
    problems += _unknown_keys(node, [f.name for f in fields(cls)], group, name)
    values = _read_fields(cls, node, f"{group}.", problems, typed)
    return cls(**values)


def read_knobs(cls: type[T], node: Mapping[str, Any], group: str) -> T:
    """Check the knobs of one dataclass outside the configuration of a run; every key in an error starts with ``group``.

    Raises :class:`ConfigError` with one line for each thing that is wrong.
    """
    problems = _unknown_keys(node, [f.name for f in fields(cls)], group)  # type: ignore[arg-type]
    values = _read_fields(cls, node, f"{group}.", problems, {})
    if problems:
        raise ConfigError(*problems)
    return cls(**values)


def _read_fields(
    cls: type[Any], node: Mapping[Any, Any], prefix: str, problems: list[str], typed: Mapping[str, str]
) -> dict[str, Any]:
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for f in fields(cls):
        value = node.get(f.name, f.default)
        key = f"{prefix}{f.name}"
        problem, values[f.name] = _check_value(f, hints[f.name], value)
        if problem:
            # A number is told as it was written: 1e3, not 1000.0.
            word = typed.get(key) if isinstance(value, float) else None
            is_text = isinstance(value, str) and _READ_AS_OTHER.fullmatch(value)
            problems.append(f"{word or f'{key}={repr(value) if is_text else shown(value)}'}: {problem}")
    return values


def takes_whole_numbers(key: str) -> bool:
    """Whether the only numbers that a key of a run takes are whole ones, with whichever option of its group."""
    group, _, knob = key.rpartition(".")
    classes = OPTIONS.get(group, {}).values() if group else (Run,)
    found = [(f, get_type_hints(cls)[f.name]) for cls in classes for f in fields(cls) if f.name == knob]
    # What may also be something else, such as batch_size=full, has a check of its own instead of a type.
    return bool(found) and all(
        hint in (int, int | None) or (hint is Any and not problem_with(f, 1) and bool(problem_with(f, 1.5)))
        for f, hint in found
    )


def _check_value(f: Field[Any], hint: Any, value: Any) -> tuple[str | None, Any]:
    """What is wrong with a value (or None), and the value as the field's type."""
    wanted = next((t for t in _WORDS if hint in (t, t | None)), None)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= LARGEST else math.inf
    if wanted is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    fits = wanted is None or (isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)))
    if not fits and not (value is None and f.default is None):
        allowed = f.metadata.get("allowed")
        return f"must be {_WORDS[wanted]}" + (f" ({allowed})" if allowed else ""), value  # type: ignore[index]
    problem = problem_with(f, value)
    return problem, tuple(value) if isinstance(value, list) else value


def _unknown_keys(
    node: Mapping[Any, Any], known: Iterable[str], group: str | None = None, name: str | None = None
) -> list[str]:
    known = list(known)
    where = f"{group}={name}" if name else group or "a run"
    prefix = f"{group}." if group else ""
    return [
        f"{prefix}{key}={shown(node[key])}: {where} has no such knob; {one_of((k for k in known if k != 'name'), key)}"
        for key in map(str, node)
        if key not in known
    ]


def one_of(options: Iterable[str], given: str) -> str:
    """'did you mean ...?' where something is near, and all that is allowed."""
    options = list(options)
    if not options:
        return "it has none"
    near = difflib.get_close_matches(given.lower(), options, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}allowed: {', '.join(options)}"
