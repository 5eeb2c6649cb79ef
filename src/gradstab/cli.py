"""The command line: which subcommand runs, and with which exit code.

Exit codes: 0 completed, diverged (a result) or asked-for text; 1 a failure; 2 a wrong command or configuration;
130 interrupted by Ctrl-C. Nothing here imports torch before a run starts.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradstab import __version__
from gradstab.errors import ConfigError, GradstabError

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

USAGE = """\
gradstab: are my gradients vanishing or exploding, where, why, and what mends it?

usage: gradstab COMMAND ...

commands:
  train [OVERRIDES]   train a network and record its gradients, layer by layer
                        gradstab train                                  a 20-layer ReLU network on digits
                        gradstab train model=deep_mlp act=sigmoid       watch the gradient vanish
                        gradstab train -m act=sigmoid,tanh,relu         a sweep
                        gradstab train --cfg job                        show the configuration, do not train
  list [GROUP]        every option of every group, with its knobs and the paper it is from

options:
  -h, --help          this text
  --version           the version
  -sc install=bash    print the shell function for Tab completion (bash, zsh, fish): eval "$(gradstab -sc install=bash)"

exit codes: 0 completed or diverged, 1 failed, 2 wrong command or configuration, 130 interrupted
"""

HYDRA_FLAGS = (
    *("-m", "--multirun", "--cfg", "-c", "--config-dir", "-cd", "--config-name", "-cn", "--resolve", "--package", "-p"),
    *("--info", "-i", "--run", "-r", "--hydra-help", "--config-path", "-cp", "--experimental-rerun"),
)

_exit_codes: list[int] = []


def entry_point() -> None:
    """What the ``gradstab`` script and ``python -m gradstab`` call."""
    sys.exit(main(sys.argv[1:]))


def main(args: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    if args and args[0] in ("-m", "--multirun"):
        args = [*args[1:], args[0]]
    command, rest = (args[0], list(args[1:])) if args else ("", [])
    try:
        match command:
            case "-h" | "--help" | "help":
                return _say(USAGE)
            case "--version":
                return _say(f"gradstab {__version__}\n")
            case "train":
                return train(rest)
            case "list":
                return list_options(rest)
            case "-sc" | "--shell-completion" | "--shell_completion":
                return complete(rest)
            case "":
                sys.stderr.write(USAGE)
                return BAD_INPUT
            case _:
                return _complain(f"{command}: there is no such command; allowed: train, list (see gradstab --help)")
    except ConfigError as error:
        return _complain(*error.problems)
    except GradstabError as error:
        _complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing is left to say, and the interpreter must not try to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def list_options(args: Sequence[str]) -> int:
    """``gradstab list [GROUP]``."""
    from gradstab.catalogue import listing

    if "-h" in args or "--help" in args:
        return _say(USAGE)
    if len(args) > 1:
        raise ConfigError(f"list {' '.join(args)}: takes at most one group")
    return _say(listing(args[0] if args else None) + "\n")


def train(args: list[str]) -> int:
    """``gradstab train``: compose with Hydra, then hand each configuration to the runner."""
    if "-h" in args or "--help" in args:
        return _say(USAGE)
    from gradstab.catalogue import CHOICES

    overrides = [arg for arg in args if "=" in arg and not arg.startswith("-")]
    for arg in args:
        if arg.startswith("-") and arg.split("=")[0] not in HYDRA_FLAGS:
            raise ConfigError(f"{arg}: there is no such flag; allowed: {', '.join(HYDRA_FLAGS)}")
    for text in overrides:
        if text.partition("=")[0] in CHOICES and text.partition("=")[2].startswith("["):
            raise ConfigError(f"{text}: a group takes one option; several are a sweep: -m with commas between them")
    _exit_codes.clear()
    _hydra(_multirun_first(_from_run_directory(args)), overrides)
    return max(_exit_codes, default=OK)


def complete(args: list[str]) -> int:
    """Tab completion: Hydra's own, which knows no subcommands, with the subcommand taken out of the line."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    typing_first = len(words) < 2 or (len(words) == 2 and not line.endswith(" "))
    if not any(arg.startswith("query=") for arg in args):
        pass
    elif typing_first:
        return _say("train list --help --version\n")
    elif words[1] == "list":
        from gradstab.catalogue import CHOICES

        return _say(" ".join(CHOICES) + "\n")
    elif words[1] == "train":
        os.environ["COMP_LINE"] = line.replace(" train", "", 1)
    _hydra(["--shell-completion", *args], args)
    return OK


def _hydra(args: list[str], overrides: Sequence[str]) -> None:
    import hydra

    from gradstab.config import register_schema, translate

    register_schema()
    _register_resolvers()
    # Without this, Hydra prints its own account of an error and exits with 1 before we can say it in one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *args]
    try:
        hydra.main(version_base="1.3", config_path="pkg://gradstab.configs", config_name="train")(_run_job)()
    except GradstabError:
        raise
    except Exception as error:
        # Runs report their own failures: what escapes Hydra is about composing the configuration.
        raise translate(error, overrides) from error


def _register_resolvers() -> None:
    from omegaconf import OmegaConf

    from gradstab.run_directory import new_name

    OmegaConf.register_new_resolver(
        "gradstab_sweep_dir", lambda out_dir: out_dir or f"outputs/sweeps/{new_name()}", use_cache=True, replace=True
    )


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

        from gradstab.runner import run

        run(config, directory)
    except ConfigError as error:
        _exit_codes.append(_complain(*error.problems))
    except GradstabError as error:
        _complain(str(error))
        _exit_codes.append(FAILED)
    except Exception as error:
        if os.environ.get("GRADSTAB_TRACEBACK"):
            traceback.print_exc()
        _complain(f"failed: {type(error).__name__}: {error}".splitlines()[0] + " (GRADSTAB_TRACEBACK=1 shows where)")
        _exit_codes.append(FAILED)
    else:
        _exit_codes.append(OK)


def _multirun_first(args: Sequence[str]) -> list[str]:
    """Hydra refuses ``-m`` between overrides; wherever it was typed, it goes to the front."""
    flags = [arg for arg in args if arg in ("-m", "--multirun")]
    return flags[:1] + [arg for arg in args if arg not in ("-m", "--multirun")]


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


def _say(text: str) -> int:
    sys.stdout.write(text)
    sys.stdout.flush()
    return OK


def _complain(*lines: str) -> int:
    for line in lines:
        sys.stderr.write(f"gradstab: {line}\n")
    return BAD_INPUT
