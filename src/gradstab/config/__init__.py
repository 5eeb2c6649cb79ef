"""The configuration of a run: a schema, its checks, and the way from Hydra to plain frozen dataclasses.

Nothing in this package imports torch, so that ``--help``, errors and completion are quick.
"""

from gradstab.config.compose import flat, from_hydra, one_of, register_schema, to_container
from gradstab.config.hydra_errors import translate
from gradstab.config.registry import OPTIONS, Option
from gradstab.config.run import GROUPS, Config

__all__ = [
    "GROUPS",
    "OPTIONS",
    "Config",
    "Option",
    "flat",
    "from_hydra",
    "one_of",
    "register_schema",
    "to_container",
    "translate",
]
