"""Weights drawn at the edge of chaos, where theory says that a gradient keeps its length through depth."""

from __future__ import annotations

from gradstab.errors import ConfigError
from gradstab.initializers.draw import Draw, normal
from gradstab.theory import NoTheory, activation, critical_sigma_w2, has_edge


def critical(draw: Draw, *, sigma_b2: float) -> None:
    """Normal weights of variance sigma_w2/fan_in with χ₁ = 1 for the network's activation, biases of ``sigma_b2``.

    (Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017, arXiv:1611.01232.) It is the edge of the plain
    network: blocks, norms and pooling around a unit add factors of their own. Dropout at rate p multiplies lengths and
    squared gradients by 1/(1-p), so sigma_w2 is multiplied by 1-p (Pretorius et al. 2018, arXiv:1811.00293). Raises
    :class:`ConfigError` where the activation has no edge of chaos at ``sigma_b2``.
    """
    act = activation(draw.act_name, **draw.act_knobs)
    try:
        sigma_w2 = critical_sigma_w2(act, sigma_b2, draw.dropout)
    except NoTheory as reason:
        at_zero = sigma_b2 > 0 and has_edge(act, 0.0)
        other = "init.sigma_b2=0, or another act" if at_zero else "another act, such as tanh or relu"
        allowed = "" if "allowed:" in str(reason) else f"; allowed: {other}"
        raise ConfigError(f"init=critical init.sigma_b2={sigma_b2:g}: {reason}{allowed}") from reason
    for share in draw.shares():
        normal(share.weight, draw.gain**2 * sigma_w2 / share.fan_in, draw.generator)
        if share.bias is not None:
            normal(share.bias, sigma_b2, draw.generator)
