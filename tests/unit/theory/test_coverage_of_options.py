"""Every combination of options is predicted, or refused with one line that says why."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradstab.config.registry import OPTIONS
from gradstab.theory import NoTheory, predict


@pytest.mark.parametrize("init", sorted(OPTIONS["init"]))
@pytest.mark.parametrize(
    ("norm", "position"), [("none", None), ("batch", None), ("batch", "after"), ("layer", "before"), ("layer", "after")]
)
@pytest.mark.parametrize("residual", ["none", "add", "scaled", "rezero"])
def test_every_configuration_is_predicted_or_refused_with_a_reason(
    init: str, norm: str, position: str | None, residual: str
) -> None:
    option = OPTIONS["init"][init](name=init)
    knobs: dict[str, Any] = {"norm": norm, "norm_position": position, "residual": residual, "batch_size": 16}
    knobs |= {"init": init, "init_knobs": option.knobs, "act": "elu", "act_knobs": {"alpha": 0.8}, "dropout": 0.1}
    widths = [50, 60, 60, 40, 10]

    if init in ("zeros", "constant", "identity", "fixup") or (norm == "batch" and position == "after"):
        with pytest.raises(NoTheory) as caught:
            predict(widths=widths, q0=1.0, **knobs)
        assert "\n" not in str(caught.value)
        return
    predicted = predict(widths=widths, q0=1.0, **knobs)
    for values in (predicted.q, predicted.chi_1, predicted.chi_parallel, predicted.signal_grad_norm):
        assert values.shape == (3,)
        assert np.isfinite(values).all()
    assert math.isfinite(predicted.depth_factor)


def test_what_has_no_theory() -> None:
    with pytest.raises(NoTheory, match="no hidden layer"):
        predict(act="tanh", widths=[10, 10], q0=1.0)
    with pytest.raises(NoTheory, match="every weight is 0"):
        predict(act="tanh", widths=[10, 10, 10], q0=1.0, init="uniform", init_knobs={"bound": 0.0})
    with pytest.raises(ValueError, match="act=swish: allowed"):
        predict(act="swish", widths=[10, 10, 10], q0=1.0)
    with pytest.raises(ValueError, match="residual=yes: allowed"):
        predict(act="tanh", widths=[10, 10, 10], q0=1.0, residual="yes")
    with pytest.raises(ValueError, match="init=he: not known to the theory") as caught:
        predict(act="tanh", widths=[10, 10, 10], q0=1.0, init="he")
    # All that the configuration has, but for those that there is no theory of.
    allowed = str(caught.value).partition("allowed: ")[2].split(", ")
    assert set(allowed) == OPTIONS["init"].keys() - {"zeros", "constant", "identity", "fixup"}
