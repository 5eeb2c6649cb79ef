"""Wide networks as gradstab builds them, from their configuration on, against the prediction of that configuration.

A fuller table is scripts/theory_agreement.py's.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gradstab import reproducibility
from gradstab.assembly import build_initialised
from gradstab.data import load_data
from gradstab.expectation import expect
from gradstab.inputs import inputs_of
from gradstab.measure.probe import Probe
from tests.conftest import Compose

WIDE = "data=gaussian data.dim=1000 data.n_train=64 data.n_test=1 batch_size=32 model.width=1000 model.depth=8"
WIDER = "data=gaussian data.dim=2000 data.n_train=64 data.n_test=1 batch_size=32 model.width=2000 model.depth=6"
DIGITS = "data=digits batch_size=32 model.width=2000 model.depth=8 model.norm=batch"


@pytest.mark.parametrize(
    ("overrides", "limit"),
    [
        (f"{WIDE} act=relu init=kaiming_normal", 0.01),
        (f"{WIDE} act=tanh init=critical init.sigma_b2=0.05", 0.01),
        (f"{WIDE} act=sigmoid init=xavier_normal", 0.01),
        (f"{WIDE} act=tanh init=default", 0.01),
        (f"{WIDE} act=tanh init=lecun_normal model.norm=layer", 0.015),
        (f"{WIDE} act=relu init=critical model.dropout=0.3", 0.015),
        (f"{WIDE} act=relu init=lecun_normal model.residual=add", 0.01),
        (f"{WIDER} act=relu init=kaiming_normal model.norm=batch", 0.01),
        (f"{DIGITS} act=relu init=kaiming_normal", 0.01),
        (f"{DIGITS} act=sigmoid init=xavier_normal", 0.01),
        (f"{DIGITS} act=tanh init=xavier_normal model.residual=add", 0.01),
    ],
)
def test_depth_factors(configure: Compose, overrides: str, limit: float) -> None:
    config = configure("device=cpu", *overrides.split())
    data = load_data(config.data.name, **config.data.knobs)
    prediction = expect(config, inputs_of(data))
    logs = []
    for seed in range(2 if "2000" in overrides else 4):
        model = build_initialised(replace(config, seed=seed), data).train()
        probe = Probe(model, model.layers)
        with torch.random.fork_rng(devices=[]), probe.watching() as read:
            torch.manual_seed(reproducibility.stream_seed(seed, "dropout"))
            part = slice(32 * seed, 32 * (seed + 1)) if "digits" in overrides else slice(32)
            torch.nn.functional.cross_entropy(model(data.train.inputs[part]), data.train.targets[part]).backward()
            logs.append(np.log(read()["signal_grad_norm"][: len(probe.hidden)].double().numpy()))
    profile = np.mean(logs, axis=0)
    slope = np.polyfit(np.arange(len(profile)), profile, 1)[0]
    assert prediction.depth_factor == pytest.approx(math.exp(-slope), rel=limit)
    if "act=relu init=critical" in overrides:
        # Of ReLU's, every length is at the edge of chaos from the first layer on.
        assert math.exp(-slope) == pytest.approx(1, abs=0.02)
    if "residual" in overrides and "digits" not in overrides:
        ratios = prediction.signal_grad_norm[:-1] / prediction.signal_grad_norm[1:]
        np.testing.assert_allclose(np.exp(profile[:-1] - profile[1:]), ratios, rtol=limit)
