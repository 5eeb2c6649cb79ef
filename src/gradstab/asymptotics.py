"""What theory says of a configured network that went on for ever: fixed points and depth scales."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from gradstab.config import Config
from gradstab.theory import NoTheory, Prediction, activation, depth_scales, fixed_points


def infinite_depth(config: Config, prediction: Prediction) -> dict[str, Any] | None:
    """What theory says of infinitely many such layers: fixed points, and the depth scales ξ_q, ξ_c and ξ_∇.

    The scales are those at the length that the first hidden layer's tends to. None for networks that are not plain or
    whose hidden layers differ; with a ``reason`` in place of the scales where lengths tend to none; None for a scale
    that does not exist.
    """
    knobs = config.model.knobs
    plain = config.model.name == "deep_mlp" and knobs["norm"] == "none" and knobs["residual"] == "none"
    inner_w, inner_b = prediction.sigma_w2[1:-1], prediction.sigma_b2[1:-1]
    if not plain or inner_w.size == 0 or np.ptp(inner_w) > 1e-9 * inner_w[0] or np.ptp(inner_b) > 1e-9:
        return None
    act = activation(config.act.name, **config.act.knobs)
    sigma_w2, sigma_b2, rate = float(inner_w[0]), float(inner_b[0]), knobs["dropout"]
    found: dict[str, Any] = {"sigma_w2": sigma_w2, "sigma_b2": sigma_b2}
    found["fixed_points"] = [asdict(point) for point in fixed_points(act, sigma_w2 / (1 - rate), sigma_b2)]
    try:
        scales = asdict(depth_scales(act, sigma_w2, sigma_b2, dropout=rate, start=float(prediction.q[0])))
    except NoTheory as reason:
        return found | {"reason": str(reason)}
    return found | {key: None if math.isnan(value) else value for key, value in scales.items()}
