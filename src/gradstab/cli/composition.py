"""Hydra as the command line uses it: composing, and Tab completion."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gradstab.catalogue import CHOICES
from gradstab.cli import resume
from gradstab.cli.flags import MULTIRUN, check_flags, in_hydras_order, split_words
from gradstab.cli.output import OK, is_about_output, say
from gradstab.cli.places import no_such_flag
from gradstab.cli.trust import check_folders, check_names
from gradstab.config.compose import one_of
from gradstab.config.probe_options import PREFIX, PROBE_KEYS
from gradstab.config.run import GROUPS
from gradstab.config.sweep_options import FIGURES, SWEEP_KEYS, is_sweep_word
from gradstab.config.sweep_options import PREFIX as SWEEP_PREFIX
from gradstab.config.verdict_options import KINDS
from gradstab.errors import ConfigError, GradstabError

COMMANDS = ("train", "probe", "list")
SHELLS = ("bash", "fish", "zsh")

# Groups that are Hydra's and ours, and nobody's to choose from.
_INTERNAL = ("hydra", "hydra.", "schema", "schema/")


def compose(
    args: Sequence[str], job: Callable[[Any], None], flags: Sequence[str], folder: str = "outputs/sweeps"
) -> None:
    """Check the words of a command, compose what they say, and call ``job`` with each configuration.

    ``flags`` are those the command has; its own ones among them it takes out of ``args`` itself. ``folder`` is a
    sweep's where the configuration has no ``out_dir``. Raises :class:`ConfigError` with the reason where Hydra cannot
    compose it.
    """
    overrides = [word for word in split_words(args)[0] if "=" in word or word.startswith("~")]
    for arg in args:
        if arg.startswith("-") and arg.split("=")[0] not in flags:
            raise no_such_flag(arg, flags)
    check_flags(args)
    for text in overrides:
        if text.partition("=")[0] in CHOICES and text.partition("=")[2].startswith("["):
            raise ConfigError(f"{text}: a group takes one option; several are a sweep: -m with commas between them")
    check_names(overrides)
    # To Hydra, commas are a sweep unless they are quoted; this key takes several values.
    args = [re.sub(r"""^(stop_on=)([^\["']*,[^"']*)$""", r"\1'\2'", arg) for arg in args]
    _register_resolvers(folder)
    args = _from_run_directory(args)
    check_folders(args)
    _hydra(in_hydras_order(args), overrides, job)


def complete(args: list[str]) -> int:
    """Tab completion: Hydra's own, which knows no subcommands, with the subcommand taken out of the line."""
    words = [f"{what}={shell}" for what in ("install", "uninstall") for shell in SHELLS]
    if len(args) != 1 or args[0] not in (*words, *(f"query={shell}" for shell in SHELLS)):
        what = one_of(words, " ".join(args)) if args else f"has no value; {one_of(words, '')}"
        raise ConfigError(f"{' '.join(['-sc', *args])}: {what}")
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    typing_first = len(words) < 2 or (len(words) == 2 and not line.endswith(" "))
    if not any(arg.startswith("query=") for arg in args):
        pass
    elif typing_first:
        return say(" ".join([*COMMANDS, "report", "explain", "status", "--help", "--version"]) + "\n")
    elif words[1] in ("report", "explain", "status"):
        return say("\n")
    elif words[1] == "list":
        return say(" ".join(CHOICES) + "\n")
    elif words[1] in COMMANDS:
        return _complete_overrides(args, words[1], line.replace(f" {words[1]}", "", 1))
    _hydra(["--shell-completion", *args], args, lambda _composed: None)
    return OK


def _complete_overrides(args: list[str], command: str, line: str) -> int:
    """What may stand next in a command that Hydra composes, ``line`` being its words without the subcommand."""
    separator = "\n" if "query=fish" in args else " "
    words = line.split()
    typed = "" if line.endswith(" ") else words.pop()
    found = []
    if command == "train" and (resuming := resume.completions(words, typed)) is not None:
        return say(separator.join(resuming) + "\n")
    if command == "train" and set(MULTIRUN) & set(words):
        own = [f"objective={figure}" for figure in FIGURES] if typed.startswith("objective=") else SWEEP_KEYS
        found = [word for word in own if word.startswith(typed)]
    words = [word for word in words if not is_sweep_word(word)]
    if command == "probe":
        own = ("probe.jacobian=true", "probe.jacobian=false") if typed.startswith("probe.jacobian=") else PROBE_KEYS
        found = [word for word in (*own, "--json") if word.startswith(typed)]
        # Hydra could not compose with these.
        words = [word for word in words if word != "--json" and not word.startswith(PREFIX)]
    if typed.startswith("stop_on="):
        before = typed[: max(typed.rfind("="), typed.rfind(",")) + 1]
        found += [before + kind for kind in KINDS if (before + kind).startswith(typed)]
    elif not typed.startswith(("-", PREFIX, SWEEP_PREFIX, "objective=")):
        os.environ["COMP_LINE"] = " ".join([*words, typed])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            _hydra(["--shell-completion", *args], args, lambda _composed: None)
        found += [w for w in printed.getvalue().strip("\n").split(separator) if w not in (*_INTERNAL, "objective=")]
    return say(separator.join(found) + "\n")


def _hydra(args: list[str], overrides: Sequence[str], job: Callable[[Any], None]) -> None:
    import hydra

    from gradstab.config import register_schema, translate

    register_schema()
    # Without this, Hydra prints its own account of an error and exits with 1 before we can say it in one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *args]
    try:
        with _mode_as_typed():
            hydra.main(version_base="1.3", config_path="pkg://gradstab.configs", config_name="train")(job)()
    except GradstabError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, GradstabError):
            # Hydra wraps what the classes say that it makes an instance of.
            raise error.__cause__ from error
        if is_about_output(error):
            raise
        # Runs report their own failures: what escapes Hydra is about composing the configuration.
        raise translate(error, overrides) from error


@contextlib.contextmanager
def _mode_as_typed() -> Iterator[None]:
    """Whether it is a sweep is known from the flags; Hydra would compose once more to look for it in files."""
    from hydra._internal.hydra import Hydra

    composing = Hydra.get_mode
    Hydra.get_mode = lambda *_args, **_kwargs: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = composing  # type: ignore[method-assign]


def _register_resolvers(folder: str) -> None:
    from omegaconf import OmegaConf

    def sweep_dir(out_dir: Any) -> str:
        chosen = Path(str(out_dir or folder))
        try:
            return str(chosen.expanduser())
        except RuntimeError:
            # The check of every cell's ``out_dir`` says it in our words.
            return str(chosen)

    OmegaConf.register_new_resolver("gradstab_sweep_dir", sweep_dir, replace=True)


def _from_run_directory(args: Sequence[str]) -> list[str]:
    """``--config-dir RUN`` alone, RUN being a run's directory, means that run's config.yaml."""
    from gradstab.run_directory import holds_run

    args = list(args)
    named = any(arg.split("=")[0] in ("--config-name", "-cn") for arg in args)
    for i, arg in enumerate(args):
        flag, _, value = arg.partition("=")
        if flag in ("--config-dir", "-cd") and not named:
            folder = value or (args[i + 1] if i + 1 < len(args) else "")
            if folder and holds_run(Path(folder)):
                return [*args, "--config-name", "config"]
    return args


def typed() -> list[str]:
    """The command line's own words, as Hydra keeps them for the job at hand."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    # Unresolved: an interpolation in an override is checked with the rest.
    return list(map(str, OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False) or ()))


def options_are_fixed() -> bool:
    """Whether the job at hand has no groups to choose from: it repeats a run from the run's own config.yaml."""
    from hydra.core.hydra_config import HydraConfig

    choices = HydraConfig.get().runtime.choices
    return not any(group in choices for group in GROUPS)


def own_sweep() -> str | None:
    """What the experiment of the job at hand sweeps by itself, in words; None where it is a single network."""
    from hydra.core.hydra_config import HydraConfig

    settings = HydraConfig.get()
    if not settings.sweeper.get("params"):
        return None

    from gradstab.cli.sweep import size_of

    name = settings.runtime.choices.get("experiment")
    return f"{f'experiment={name}' if name else 'hydra.sweeper.params'}: is {size_of(settings.sweeper.params)}"
