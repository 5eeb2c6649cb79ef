"""watch() where the loop, a layer or another process keeps state of its own, which watching may not touch or trust."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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


class Counted(nn.Module):
    """A checkpointed block with running averages and masks, which a recomputation too many would change."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.block = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sigmoid(), nn.Dropout(0.3), nn.Linear(6, 5), nn.Tanh()
        )
        self.head = nn.Linear(5, 3)

    def run(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.block(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(checkpoint(self.run, x, use_reentrant=False, preserve_rng_state=False))
        return out


def _trained(directory: Path | None) -> tuple[int, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = Counted()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = None if directory is None else watch(model, directory, optimizer=optimizer, every=2)
    for step in range(5):
        x, y = batch(step)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if monitor is not None:
            monitor.step(loss)
        optimizer.step()
        optimizer.zero_grad()
    if monitor is not None:
        monitor.close()
    return model.calls, model.state_dict()


def test_a_checkpointed_network_is_recomputed_no_more_often_than_bare(tmp_path: Path) -> None:
    calls, state = _trained(None)
    watched_calls, watched = _trained(tmp_path / "run")
    assert watched_calls == calls == 10
    assert all(torch.equal(value, watched[name]) for name, value in state.items())
    saturated = read_records(tmp_path / "run").vectors["saturated_fraction"]
    assert saturated.steps.tolist() == [0, 2, 4]
    assert np.isfinite(saturated.values).all()


@pytest.mark.parametrize("every", [2, 3])
def test_hooks_that_come_between_a_checkpointed_pass_and_its_gradient_do_no_harm(tmp_path: Path, every: int) -> None:
    model = nn.ModuleDict({"generator": mlp(4, 6, 4), "critic": mlp(4, 6, 1)})
    generator, critic = (torch.optim.SGD(part.parameters(), lr=0.01) for part in model.values())
    with watch(model, tmp_path / "run", optimizer=[generator, critic], every=every) as monitor:
        for step in range(7):
            fake = checkpoint(model["generator"], batch(step)[0], use_reentrant=False)
            loss = model["critic"](fake.detach()).mean()
            loss.backward()
            monitor.step(loss, optimizer=critic)
            critic.step()
            critic.zero_grad()
            loss = -model["critic"](fake).mean()
            loss.backward()
            monitor.step(loss, optimizer=generator)
            generator.step()
            generator.zero_grad()
    assert read_records(tmp_path / "run").scalars["train/loss"].steps.tolist() == list(range(7))


def test_hooks_on_saved_tensors_change_no_slope(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, found, seen = mlp(4, 6, 3), [], []

    def pack(tensor: Tensor) -> Tensor:
        seen[-1] += 1
        return torch.zeros_like(tensor)

    for name in ("plain", "lossy"):
        seen.append(0)
        with watch(model, tmp_path / name) as monitor, contextlib.ExitStack() as stack:
            if name == "lossy":
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
            loss = F.cross_entropy(model(batch(0)[0]), batch(0)[1])
            stack.close()
            loss.backward()
            monitor.step(loss)
        found.append(read_records(tmp_path / name).vectors["dead_fraction"].values.tolist())
    seen.append(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.cross_entropy(model(batch(0)[0]), batch(0)[1])
    assert found[0] == found[1]
    assert seen[1] == seen[2]


@pytest.mark.parametrize("followed", [True, False])
def test_a_monitor_that_nobody_holds_lets_go_of_its_network_and_ends_its_record(tmp_path: Path, followed: bool) -> None:
    def training() -> weakref.ref[nn.Module]:
        model = mlp(4, 6, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = watch(model, tmp_path / "run", optimizer=optimizer if followed else None)
        x, y = batch(0)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        monitor.step(loss)
        optimizer.step()
        return weakref.ref(model)

    model = training()
    gc.collect()
    assert model() is None
    assert read_run(tmp_path / "run")["status"] == "completed"
    assert read_records(tmp_path / "run").scalars["train/loss"].steps.tolist() == [0]


class Odd(nn.Module):
    """A layer whose output is sparse, or a container that holds itself."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, context: dict[str, Any], x: Tensor) -> Any:
        y = x @ self.weight
        if self.kind == "cyclic":
            context["y"] = y
            return context
        return y.relu().to_sparse() if self.kind == "coo" else y


@pytest.mark.parametrize("kind", ["coo", "cyclic", "dense"])
def test_outputs_that_are_sparse_or_hold_themselves_do_not_end_training(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = Odd(kind)
    context: dict[str, Any] = {}
    context["itself"] = context
    with watch(model, tmp_path / "run") as monitor:
        out = model(context, torch.randn(5, 4))
        out = out["y"] if kind == "cyclic" else out.to_dense() if kind == "coo" else out
        loss = out.square().mean()
        loss.backward()
        monitor.step(loss)
    vectors = read_records(tmp_path / "run").vectors
    assert ("signal_grad_norm" in vectors) == (kind != "coo")
    assert vectors["grad_norm"].values[0] > 0


def test_a_loss_given_as_a_number_keeps_its_digits_whatever_the_default_type(tmp_path: Path) -> None:
    model = mlp(4, 6, 3)
    torch.set_default_dtype(torch.float16)
    try:
        with watch(model, tmp_path / "run", every=None) as monitor:
            for value in (70000.0, 1.2345678):
                F.cross_entropy(model(batch(0)[0].float()), batch(0)[1]).backward()
                monitor.step(value)
                model.zero_grad()
    finally:
        torch.set_default_dtype(torch.float32)
    assert read_records(tmp_path / "run").scalars["train/loss"].values == pytest.approx([70000, 1.2345678], rel=1e-6)


@pytest.mark.parametrize("given", ["x", None])
def test_a_supplied_loss_is_checked_before_there_is_a_step(tmp_path: Path, given: Any) -> None:
    with watch(mlp(4, 6, 3), tmp_path / "run") as monitor, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError, match="loss="):
            monitor.supply(given)
        monitor.close()
