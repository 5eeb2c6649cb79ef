"""``gradstab probe``: look at a network's gradient before any training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gradstab.cli.composition import compose, options_are_fixed, own_sweep, typed
from gradstab.cli.flags import HYDRA_FLAGS
from gradstab.cli.output import OK, complain, say
from gradstab.cli.places import asks_for_help
from gradstab.config import from_hydra
from gradstab.config.probe_options import is_probe_knob, probe_knobs
from gradstab.errors import ConfigError

USAGE = """\
gradstab probe: a network's gradient before any training, beside what mean-field
theory predicts: will it vanish or explode, and what mends it?

usage: gradstab probe [OVERRIDES] [options]

overrides are those of gradstab train, as far as they have an effect before the
first update; and the probe's own:
  probe.seeds=N          how many networks to draw (5), from seed upwards
  probe.jacobian=true    singular values of the Jacobians too
  probe.samples=N        at how many samples those are taken (4)

options:
  --json                 everything as one JSON object
  --config-dir DIR       a run's directory, to look at its network, or a folder
                         of configurations of your own
  --config-name NAME     which file of those, where it is not train
  --cfg job              show the configuration, do not probe
  -h, --help             this text

exit codes: 0 told, 1 failed, 2 wrong command or configuration
"""
FLAGS = ("--json", "-h", "--help", *(flag for flag in HYDRA_FLAGS if flag not in ("-m", "--multirun")))
# What has no effect on a probe, and why; with a dot, all of a group's knobs.
_IDLE = {
    "out_dir=": "writes nothing",
    "quiet=": "only prints",
    "checkpoint=": "writes nothing",
    "checkpoint.": "writes nothing",
    "objective=": "is one network, no sweep",
    "sweep.": "is one network, no sweep",
    "stop_on=": "ends before the first update",
    "on_divergence=": "ends before the first update",
    "target_loss=": "ends before the first update",
    "eval_every=": "evaluates nothing",
    "images_after=": "makes no pictures",
    "measure=": "measures everything, once",
    "measure.": "measures everything, once",
    "hydra.run.": "writes nothing",
    "hydra.sweep.": "writes nothing",
    "hydra.output_subdir=": "writes nothing",
    "hydra/launcher=": "is one network, no sweep",
    "hydra.launcher.": "is one network, no sweep",
    "hydra/sweeper=": "is one network, no sweep",
    "hydra.sweeper.": "is one network, no sweep",
}


def probe(args: Sequence[str]) -> int:
    """Measure the configured network beside theory, and print it, as one JSON object with ``--json``."""
    if asks_for_help(args):
        return say(USAGE)
    as_json = "--json" in args
    words = [arg for arg in args if arg != "--json"]
    if as_json and any(word == "--cfg" or word.startswith("--cfg=") for word in words):
        raise ConfigError("--json: no effect with --cfg, which shows the configuration as YAML; leave one of them out")
    own = [word for word in words if is_probe_knob(word)]
    knobs = probe_knobs(own)
    words = [word for word in words if word not in own]
    for word in words:
        _refuse(word)
    composed: list[tuple[Any, list[str], bool, str | None]] = []
    compose(words, lambda whole: composed.append((whole, typed(), options_are_fixed(), own_sweep())), FLAGS)
    if not composed:
        return OK
    whole, overrides, fixed, sweep = composed[0]
    if sweep:
        raise ConfigError(f"{sweep}; a probe looks at one network: leave it out, or gradstab train -m runs them")
    config = replace(from_hydra(whole, overrides), fixed=fixed)

    from gradstab.expectation import caveats

    complain(*caveats(config))

    from gradstab import probing

    findings = probing.probe(config, knobs)
    if as_json:
        return say(json.dumps(findings.to_dict(), allow_nan=False) + "\n")

    from gradstab.console.probe import show

    show(config, findings)
    return OK


def _refuse(word: str) -> None:
    if word in ("-m", "--multirun"):
        raise ConfigError(f"{word}: a probe looks at one network; a sweep is: gradstab train {word}")
    for start, why in _IDLE.items():
        if word.lstrip("+~").startswith(start):
            raise ConfigError(f"{word}: no effect, as a probe {why}; leave it out")
