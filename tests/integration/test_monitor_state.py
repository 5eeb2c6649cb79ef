"""watch() where the loop, a layer or another process keeps state of its own, which watching may not touch or trust."""

from __future__ import annotations

import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradstab import watch
from gradstab.errors import ConfigError, GradstabError
from gradstab.events import read_records
from gradstab.run_directory import read_run
from tests.integration.test_monitor_misuse import mlp


def batch(step: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, generator=g), torch.randint(3, (8,), generator=g)


def test_a_loss_that_the_loop_goes_on_adding_to_is_recorded_as_it_was(tmp_path: Path) -> None:
    model = mlp(4, 6, 3)
    total, true = torch.zeros(()), []
    with watch(model, tmp_path / "run") as monitor:
        for step in range(4):
            x, y = batch(step)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            total += loss.detach()
            true.append(float(total))
            monitor.step(total)
            total.zero_()
    assert read_records(tmp_path / "run").scalars["train/loss"].values == pytest.approx(true)


@pytest.mark.parametrize("enabled", [False, True])
def test_a_scaler_that_is_disabled_is_none(tmp_path: Path, enabled: bool) -> None:
    model = mlp(4, 6, 3)
    scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=64.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, tmp_path / "run", optimizer=optimizer, scaler=scaler) as monitor:
        x, y = batch(0)
        loss = F.cross_entropy(model(x), y)
        true = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        scaler.scale(loss).backward()
        monitor.step(loss)
        scaler.step(optimizer)
        scaler.update()
    norm = read_records(tmp_path / "run").scalars["global_grad_norm/pre_clip"].values[0]
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in true]).norm()), rel=1e-5)


def _watch_here(directory: Path, ready: Any, found: Any) -> None:
    ready.wait()
    try:
        watch(mlp(4, 6, 3), directory)
        found.put("")
    except ConfigError as error:
        found.put(str(error))


def test_of_processes_that_come_at_once_one_gets_the_directory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, found = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_watch_here, args=(tmp_path / "run", ready, found)) for _ in range(3)]
    for process in processes:
        process.start()
    said = sorted(found.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert said[0] == ""
    assert [line.startswith(f"directory={tmp_path / 'run'}: holds a run already") for line in said[1:]] == [True, True]


class Prompt(nn.Module):
    """Gives out its own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self) -> Tensor:
        return self.weight


class Prompted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prompt, self.out = Prompt(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(x + self.prompt().mean(0))
        return y


def test_a_layer_that_gives_out_its_parameter_keeps_no_hook(tmp_path: Path) -> None:
    model = Prompted()
    with watch(model, tmp_path / "run", every=1) as monitor:
        for step in range(3):
            x, y = batch(step)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            monitor.step(loss)
            model.zero_grad()
    assert not model.prompt.weight._backward_hooks


class Swish(nn.Module):
    def forward(self, h: Tensor, beta: Tensor) -> Tensor:
        return h * torch.sigmoid(beta * h)


class Swishing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.phi, self.out = nn.Linear(4, 6), Swish(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.phi(self.into(x), torch.ones(())))
        return y


def test_an_activation_that_has_no_slope_alone_is_told_of_and_ends_nothing(tmp_path: Path) -> None:
    model = Swishing()
    with warnings.catch_warnings(record=True) as caught, watch(model, tmp_path / "run", activations=[Swish]) as monitor:
        warnings.simplefilter("always")
        x, y = batch(0)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        monitor.step(loss)
    (note,) = read_run(tmp_path / "run")["notes"]
    assert note.startswith("Swish: has no slope that can be asked for (TypeError")
    assert "allowed in activations" in note
    assert [str(warning.message) for warning in caught] == [f"watch: {note}"]


@pytest.mark.parametrize("kind", ["float8", "csr"])
def test_frozen_weights_of_any_kind_have_norms(tmp_path: Path, kind: str) -> None:
    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = torch.linspace(-1, 1, 24).reshape(6, 4)
            kept = weight.to(torch.float8_e4m3fn) if kind == "float8" else weight.to_sparse_csr()
            self.weight = nn.Parameter(kept, requires_grad=False)
            self.true = float((kept.float() if kind == "float8" else weight).norm())

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.weight.float() if kind == "float8" else self.weight.to_dense()).T

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR")
        model = nn.Sequential(Base(), nn.Tanh(), nn.Linear(6, 3))
    with watch(model, tmp_path / "run") as monitor:
        x, y = batch(0)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        monitor.step(loss)
    assert read_records(tmp_path / "run").vectors["weight_norm"].values[0][0] == pytest.approx(model[0].true, rel=1e-6)


def test_the_update_is_the_optimizers_whatever_moves_weights_afterwards(tmp_path: Path) -> None:
    model = mlp(4, 6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    true = []
    with watch(model, tmp_path / "run", optimizer=optimizer, every=1) as monitor:
        for step in range(3):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            monitor.step(loss)
            before = [p.detach().clone() for p in (model[0].weight, model[2].weight)]
            optimizer.step()
            after = [p.detach().clone() for p in (model[0].weight, model[2].weight)]
            true.append([float((b - a).norm() / a.norm()) for a, b in zip(before, after, strict=True)])
            with torch.no_grad():
                model[0].weight.mul_(1.5)  # Averaged weights swapped in, say, for what comes now.
            monitor.evaluated(1.0)
            with torch.no_grad():
                model[0].weight.copy_(after[0])
    assert read_records(tmp_path / "run").vectors["update_ratio"].values == pytest.approx(np.array(true), rel=1e-5)


def test_new_parameters_are_told_of_where_norms_alone_are_recorded(tmp_path: Path) -> None:
    model = mlp(4, 6, 3)
    with watch(model, tmp_path / "run", every=None) as monitor, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(60):
            x, y = batch(step)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            monitor.step(loss)
            if step == 3:
                model[2] = nn.Linear(6, 3)
    assert any("2 new, 2 gone" in note for note in monitor.notes)


def test_nothing_is_taken_once_it_is_closed(tmp_path: Path) -> None:
    model = mlp(4, 6, 3)
    monitor = watch(model, tmp_path / "run")
    with pytest.warns(UserWarning, match="no step was recorded"):
        monitor.close()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for call in (
        lambda: monitor.follow(optimizer),
        monitor.look,
        lambda: monitor.supply(1.0),
        lambda: monitor.step(1.0),
    ):
        with pytest.raises(GradstabError, match="this monitor is closed"):
            call()
    assert not optimizer._optimizer_step_pre_hooks
