"""Which forward passes are a step's own, where a loop makes others beside them."""

from __future__ import annotations

import copy
import io
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradstab import watch
from gradstab.events import read_records
from gradstab.run_directory import read_run


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 4, generator=generator), torch.randint(3, (16,), generator=generator)


def delta(model: nn.Sequential) -> list[float]:
    """√(mean over samples of ‖∂ℓ_i/∂h_i‖²) of each layer, from a backward pass made for it."""
    x, y = data()
    hs = []
    for module in model:
        x = module(x)
        if isinstance(module, nn.Linear):
            hs.append(x)
    losses = nn.functional.cross_entropy(x, y, reduction="sum")
    return [h.square().sum(1).mean().sqrt().item() for h in torch.autograd.grad(losses, hs)]


def signals(directory: Path) -> np.ndarray:
    values: np.ndarray = read_records(directory).vectors["signal_grad_norm"].values
    return values


def test_updates_between_two_looks_are_no_part_of_the_second(tmp_path: Path) -> None:
    model, (x, y) = mlp(), data()
    expected = delta(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with watch(model, tmp_path / "run", optimizer=optimizer, every=2) as monitor:
        for i in range(41):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            if i % 10 == 0:
                monitor.step(loss)
            optimizer.step()
            assert len(monitor.signals.passes) <= 2
    found = signals(tmp_path / "run")
    assert len(found) == 3
    for row in found:
        assert row.tolist() == pytest.approx(expected, rel=1e-4)


def test_gradients_that_another_network_sent_through_and_that_were_cleared_do_not_count(tmp_path: Path) -> None:
    model, (x, y) = mlp(), data()
    expected = delta(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with watch(model, tmp_path / "run", optimizer=optimizer, every=1) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            model(2 * x).sum().backward()  # A generator's turn.
    found = signals(tmp_path / "run")
    assert len(found) == 3
    for row in found:
        assert row.tolist() == pytest.approx(expected, rel=1e-4)


def test_of_a_closure_only_the_last_evaluation_counts(tmp_path: Path) -> None:
    model, (x, y) = mlp(), data()
    expected = delta(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-9, max_iter=4)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        calls.append(loss)
        return loss

    with watch(model, tmp_path / "run", optimizer=optimizer, every=1) as monitor:
        optimizer.step(closure)
        monitor.step(calls[-1])
    assert len(calls) > 1
    assert signals(tmp_path / "run")[0].tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("passes", [1, 4])
def test_micro_batches_still_count_together(tmp_path: Path, passes: int) -> None:
    model, (x, y) = mlp(), data()
    expected = delta(model)
    with watch(model, tmp_path / "run") as monitor:
        for own, targets in zip(x.chunk(passes), y.chunk(passes), strict=True):
            loss = nn.functional.cross_entropy(model(own), targets) / passes
            loss.backward()
        monitor.step(loss)
    assert signals(tmp_path / "run")[0].tolist() == pytest.approx(expected, rel=1e-4)


def test_a_monitor_whose_directory_is_anothers_by_now_leaves_it_alone(tmp_path: Path) -> None:
    directory, model = tmp_path / "run", mlp()
    x, y = data()
    monitors = []
    for steps in (3, 8):
        shutil.rmtree(directory, ignore_errors=True)
        monitors.append(watch(model, directory))
        for _ in range(steps):
            model.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            monitors[-1].step(loss)
    monitors[1].close()
    with pytest.warns(UserWarning, match="was removed or replaced"):
        monitors[0].close()
    assert read_run(directory)["steps"] == 8


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()
        self.monitor: object = None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def test_a_network_that_holds_its_monitor_can_be_copied_and_saved(tmp_path: Path) -> None:
    model = Holder()
    with watch(model, tmp_path / "run") as monitor:
        model.monitor = monitor
        twin = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(twin, buffer)
        assert twin.monitor is None
        loss = model(data()[0]).square().mean()
        loss.backward()
        monitor.step(loss)
    assert read_run(tmp_path / "run")["steps"] == 1


def test_of_activations_that_are_nan_no_unit_is_called_dead_or_alive(tmp_path: Path) -> None:
    model = mlp()
    with torch.no_grad():
        model[0].bias[0] = math.nan
    with warnings.catch_warnings(), watch(model, tmp_path / "run") as monitor:
        warnings.simplefilter("ignore")
        loss = model(data()[0]).square().mean()
        loss.backward()
        monitor.step(loss)
    assert np.isnan(read_records(tmp_path / "run").vectors["dead_fraction"].values).all()


@pytest.mark.parametrize(("factor", "told"), [(65536.0, True), (60000.0, False), (2.0, False)])
def test_a_scaler_that_nobody_spoke_of_is_noticed(tmp_path: Path, factor: float, told: bool) -> None:
    model, (x, y) = mlp(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watch(model, tmp_path / "run", optimizer=optimizer) as monitor:
            for _ in range(150):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                (loss * factor).backward()
                monitor.step(loss)
                for parameter in model.parameters():
                    parameter.grad /= factor
                optimizer.step()
    said = [str(warning.message) for warning in caught if "power of two" in str(warning.message)]
    assert len(said) == int(told)
    assert any("65536" in note for note in monitor.notes) == told


class Recurrent(nn.Module):
    """Reads [time, batch, features] and classifies the last state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reader, self.head = nn.LSTM(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.reader(x)[0][-1])
        return out

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.forward(x), y)


@pytest.mark.parametrize("samples", [3, 12])
@pytest.mark.parametrize("called", [True, False])
def test_outputs_without_a_time_axis_have_their_samples_first(tmp_path: Path, samples: int, called: bool) -> None:
    model, x = Recurrent(), torch.randn(5, samples, 4)
    y = torch.arange(samples) % 3
    with watch(model, tmp_path / "run", batch_dim=1) as monitor:
        loss = nn.functional.cross_entropy(model(x), y) if called else model.loss(x, y)
        loss.backward()
        monitor.step(loss)
    h = model(x).detach().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(h, y, reduction="sum"), h)
    delta_of_head = grad.square().sum(1).mean().sqrt().item()
    rows = h.detach().tolist()
    pairs = [sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) for i in range(samples) for j in range(i)]
    alike = (sum(pairs) / len(pairs)) / (sum(v * v for row in rows for v in row) / samples)
    vectors = read_records(tmp_path / "run").vectors
    assert vectors["correlation"].values[0, -1] == pytest.approx(alike, rel=1e-4)
    assert vectors["signal_grad_norm"].values[0, -1] == pytest.approx(delta_of_head, rel=1e-4)


class Tokens(nn.Module):
    """Looks at positions one by one, takes their mean, and sends samples to one of two experts."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token, self.phi, self.pooled = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2 * mixed))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.phi(self.token(x.reshape(-1, 4))).reshape(len(x), -1, 8).mean(1) if x.ndim > 2 else self.token(x)
        a = self.phi(self.pooled(a))
        for i, expert in enumerate(self.experts):
            own = torch.arange(len(a) * i // 3, len(a) * (i + 2) // 3)
            a = a.index_add(0, own, expert(a[own]))
        out: Tensor = self.head(a)
        return out


@pytest.mark.parametrize("mixed", [False, True])
def test_a_network_of_which_a_method_is_called_gives_the_same_numbers(tmp_path: Path, mixed: bool) -> None:
    # Seven of experts' rows and eleven of all have no number in common.
    x, y = torch.randn(11, 4) if mixed else torch.randn(4, 16, 4), torch.arange(11 if mixed else 4) % 3
    found = []
    for name in ("called", "method"):
        model = Tokens(mixed)
        with watch(model, tmp_path / name) as monitor:
            loss = nn.functional.cross_entropy(model(x) if name == "called" else model.forward(x), y)
            loss.backward()
            monitor.step(loss)
        found.append(signals(tmp_path / name)[0].tolist())
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert not any(map(math.isnan, found[0]))


def test_weights_that_are_computed_for_a_call_hide_no_micro_batch(tmp_path: Path) -> None:
    model, (x, y) = mlp(), data()
    expected = delta(model)
    with warnings.catch_warnings(), watch(model, tmp_path / "run") as monitor:
        warnings.simplefilter("error")
        for own, targets in zip(x.chunk(4), y.chunk(4), strict=True):
            fast = {name: 1.0 * p for name, p in model.named_parameters()}
            loss = nn.functional.cross_entropy(torch.func.functional_call(model, fast, (own,)), targets) / 4
            loss.backward()
        monitor.step(loss)
    assert signals(tmp_path / "run")[0].tolist() == pytest.approx(expected, rel=1e-4)


def test_gradients_cleared_just_before_the_backward_pass_are_no_part_of_the_step(tmp_path: Path) -> None:
    """The order of torch's own tutorials: forward, zero_grad, backward; some batches are thrown away."""
    model, (x, y) = mlp(), data()
    expected = delta(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with watch(model, tmp_path / "run", optimizer=optimizer, every=1) as monitor:
        for i in range(6):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad(set_to_none=i % 2 == 0)
            loss.backward()
            if i not in (2, 4):
                monitor.step(loss)
                optimizer.step()
    np.testing.assert_allclose(signals(tmp_path / "run"), [expected] * 4, rtol=1e-5)


def test_two_passes_that_one_loss_sends_gradients_back_through_both_count(tmp_path: Path) -> None:
    model, (x, y) = mlp(), data()
    expected = delta(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with watch(model, tmp_path / "run", optimizer=optimizer, every=1) as monitor:
        for _ in range(3):
            parts = [nn.functional.cross_entropy(model(x[at]), y[at]) for at in (slice(0, 6), slice(6, 16))]
            optimizer.zero_grad()
            loss = (6 * parts[0] + 10 * parts[1]) / 16
            loss.backward()
            monitor.step(loss)
            optimizer.step()
    np.testing.assert_allclose(signals(tmp_path / "run"), [expected] * 3, rtol=1e-5)
