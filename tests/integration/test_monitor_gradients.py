"""watch() where gradients are missing, sparse, changed by hooks, or in another precision, and where scalers skip."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradstab import watch
from gradstab.events import read_records
from gradstab.measure.afterwards import judge_records
from gradstab.run_directory import read_run
from tests.integration.test_monitor_misuse import mlp


@pytest.mark.filterwarnings("ignore:watch. all gradients are missing")
@pytest.mark.parametrize("every", [1, None])
def test_steps_in_a_row_without_any_gradient_have_norms_of_0(tmp_path: Path, every: int | None) -> None:
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = []
    with watch(model, tmp_path / "run", optimizer=optimizer, every=every) as seen:
        for step in range(6):
            optimizer.zero_grad()
            loss = model(torch.randn(3, 4)).square().mean()
            if step % 4 == 0:
                loss.backward()
            norms.append(math.hypot(*(p.grad.norm().item() for p in model.parameters() if p.grad is not None)))
            seen.step(loss)
            optimizer.step()
    found = read_records(tmp_path / "run").scalars["global_grad_norm/pre_clip"].values
    assert found.tolist() == pytest.approx(norms, rel=1e-6)
    assert [value == 0 for value in norms] == [False, True, True, True, False, True]


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_weights_are_measured_by_what_they_hold(tmp_path: Path, layout: torch.layout) -> None:
    class Adjacent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter((torch.eye(6) * 2).to_sparse(layout=layout))  # type: ignore[no-untyped-call]
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.sparse.mm(self.weight, x.t()).t())
            return y

    torch.manual_seed(0)
    model = Adjacent()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, tmp_path / "run", optimizer=optimizer, every=1) as monitor:
        loss = model(torch.randn(5, 6)).square().mean()
        loss.backward()
        assert model.weight.grad is not None
        norm = model.weight.grad.to_dense().norm().item()
        monitor.step(loss)
        before = model.weight.detach().to_dense().clone()
        optimizer.step()
    records = read_records(tmp_path / "run")
    vectors, place = records.vectors, [tag.endswith("head") for tag in records.layers].index(False)
    assert vectors["grad_norm"].values[0, place] == pytest.approx(norm, rel=1e-6)
    assert vectors["weight_norm"].values[0, place] == pytest.approx(2 * math.sqrt(6), rel=1e-6)
    change = (model.weight.detach().to_dense() - before).norm() / before.norm()
    assert vectors["update_ratio"].values[0, place] == pytest.approx(change.item(), rel=1e-5)


def test_signals_are_those_that_arrived_whatever_hooks_make_of_them(tmp_path: Path) -> None:
    class Damped(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.first, self.last, self.factor = nn.Linear(5, 7), nn.Linear(7, 2), factor

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h.register_hook(lambda grad: grad.mul_(self.factor))  # type: ignore[no-untyped-call]
            y: Tensor = self.last(h.relu())
            return y

    signals = []
    for factor in (1.0, 0.1):
        torch.manual_seed(0)
        model = Damped(factor)
        with watch(model, tmp_path / str(factor), every=1) as monitor:
            loss = model(torch.randn(4, 5)).square().mean()
            loss.backward()
            monitor.step(loss)
        signals.append(read_records(tmp_path / str(factor)).vectors["signal_grad_norm"].values[0].tolist())
    assert signals[1] == pytest.approx(signals[0], rel=1e-6)


def test_a_network_that_becomes_half_precision_keeps_its_norms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mlp(64, 64, 2)
    with watch(model, tmp_path / "run", every=None) as monitor:
        for step in range(3):
            if step:
                model.bfloat16()
            model.zero_grad()
            dtype = next(model.parameters()).dtype
            loss = model(torch.randn(8, 64, dtype=dtype)).square().mean()
            loss.backward()
            exact = math.hypot(*(p.grad.double().norm().item() for p in model.parameters() if p.grad is not None))
            monitor.step(loss)
    assert dtype == torch.bfloat16
    found = read_records(tmp_path / "run").scalars["global_grad_norm/pre_clip"].values
    assert found[-1] == pytest.approx(exact, rel=1e-5)


def test_another_default_device_is_nobodys_business(tmp_path: Path) -> None:
    model = mlp(4, 8, 2)
    x = torch.randn(3, 4)
    with watch(model, tmp_path / "run", every=1) as monitor:
        torch.set_default_device("meta")
        try:
            loss = model(x).square().mean()
            loss.backward()
            monitor.step(loss)
        finally:
            torch.set_default_device(None)
    assert read_run(tmp_path / "run")["steps"] == 1


@pytest.mark.parametrize(
    ("broken", "labels", "status"),
    [
        (range(40, 60), ["non_finite"], "diverged"),
        (range(0, 60), ["non_finite"], "diverged"),
        # Overflows that pass are the scaler's work.
        ([10, 30, 31, 50], ["healthy"], "completed"),
        (range(20, 23), ["healthy"], "completed"),
    ],
)
def test_a_scaler_that_skips_broken_losses_without_end_makes_nothing_healthy(
    tmp_path: Path, broken: list[int], labels: list[str], status: str
) -> None:
    torch.manual_seed(0)
    model = mlp(5, 16, 2)
    x = torch.randn(64, 5)
    y = (x[:, 0] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    with watch(model, tmp_path / "run", optimizer=optimizer, scaler=scaler, every=5) as monitor:
        for step in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if step in broken:
                loss = loss * math.inf
            scaler.scale(loss).backward()
            monitor.step(loss)
            scaler.step(optimizer)
            scaler.update()
            if step % 7 == 0:
                monitor.evaluated(0.5)
        before = list(monitor.verdict().labels)
    known = read_run(tmp_path / "run")
    assert before == labels == known["verdict"]["labels"]
    assert (known["status"], known["skipped_steps"]) == (status, len(list(broken)))
    assert list(judge_records(read_records(tmp_path / "run"), known).labels) == labels
