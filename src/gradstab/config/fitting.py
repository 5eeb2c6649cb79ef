"""Which knobs make a configuration large, and the largest values of them that would fit."""

from __future__ import annotations

from dataclasses import replace

from gradstab.config.network_options import DeepMLP
from gradstab.config.run import Config
from gradstab.config.sizes import footprint
from gradstab.config.training_options import Gaussian


def with_value(config: Config, key: str, value: int) -> Config:
    """The configuration with one of :func:`sizes_in` at most ``value``."""
    group, _, knob = key.partition(".")
    if key == "batch_size":
        return replace(config, batch_size=value)
    option = getattr(config, group)
    if isinstance(option.knobs[knob], tuple):
        return replace(config, model=replace(option, width=tuple(min(width, value) for width in option.width)))
    config = replace(config, **{group: replace(option, **{knob: value})})
    if key != "data.n_train":
        return config
    return replace(config, n_train=value, batch_size=config.batch_size if config.batch <= value else "full")


def sizes_in(config: Config) -> list[tuple[str, int, int]]:
    """The knobs that make a run large, with value and smallest value, those furthest above their default first."""
    found: list[tuple[str, int, int, int]] = [("batch_size", config.batch, 1, 128)]
    if isinstance(config.model, DeepMLP) and config.model.depth:
        width = config.model.width
        found.append(("model.width", max(width) if isinstance(width, tuple) else width, 1, 128))
        found.append(("model.depth", config.model.depth, 1, 20))
    if isinstance(config.data, Gaussian):
        defaults = Gaussian()
        for knob in ("dim", "classes", "n_train", "n_test"):
            smallest = 2 if knob == "classes" else 1
            found.append((f"data.{knob}", config.data.knobs[knob], smallest, defaults.knobs[knob]))
    # Whole numbers: a quotient of floats has no room for what may be written here.
    found.sort(key=lambda knob: -(knob[1] * 1000 // knob[3]))
    return [(key, value, smallest) for key, value, smallest, _ in found]


def largest_that_fits(config: Config, key: str, value: int, smallest: int, free: int, *, probing: bool) -> int | None:
    """The largest value of a knob below ``value`` with which a run takes at most ``free`` bytes, if there is one."""
    if isinstance(config.model, DeepMLP) and key == "model.depth" and isinstance(config.model.width, tuple):
        return None

    def fits(trial: int) -> bool:
        return footprint(with_value(config, key, trial), probing=probing).total <= free

    if not fits(smallest):
        return None
    low, high = smallest, value
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    # Free memory comes and goes: two digits are all there is to say.
    scale = int(10 ** max(len(str(low)) - 2, 0))
    return max(smallest, low // scale * scale)
