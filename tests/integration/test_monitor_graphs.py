"""Forward passes that are made anew in the backward pass, cleared, nested, or for nothing; and other people's hooks."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradstab import watch
from gradstab.events import read_records
from gradstab.monitor.passes import Pass
from gradstab.run_directory import read_run

SAMPLES = 16


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, 4, generator=generator), torch.randint(3, (SAMPLES,), generator=generator)


def vectors(directory: Path) -> dict[str, np.ndarray]:
    return {name: series.values for name, series in read_records(directory).vectors.items()}


def recorded(directory: Path, model: nn.Module, parts: int = 1, *, anew: bool | None = None) -> dict[str, np.ndarray]:
    """What is recorded of three steps of ``parts`` micro-batches, run ``anew`` in the backward pass where that is told.

    True is the kind that starts a backward pass of its own, False the other one.
    """
    x, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with watch(model, directory, optimizer=optimizer, every=1) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            for own, targets in zip(x.chunk(parts), y.chunk(parts), strict=True):
                fed = own.clone().requires_grad_()
                output = model(fed) if anew is None else checkpoint(model, fed, use_reentrant=anew)
                loss = nn.functional.cross_entropy(output, targets) / parts
                loss.backward()
            monitor.step(loss)
            optimizer.step()
        assert monitor.notes == []
    return vectors(directory)


def assert_alike(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("anew", [True, False])
def test_a_whole_network_in_a_checkpoint_gives_the_same_numbers(tmp_path: Path, anew: bool, parts: int) -> None:
    expected = recorded(tmp_path / "plain", mlp(), parts)
    assert_alike(recorded(tmp_path / "anew", mlp(), parts, anew=anew), expected)


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("between", [nn.Identity, nn.BatchNorm1d])
def test_full_backward_hooks_hide_no_activation(tmp_path: Path, kind: str, between: type[nn.Module]) -> None:
    """Torch then hands an activation another tensor than the layer gave out; units 0 to 3 are dead."""

    def network() -> nn.Sequential:
        torch.manual_seed(0)
        norm = between(8) if between is nn.BatchNorm1d else between()
        model = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        with torch.no_grad():
            model[3].bias[:4] = -50
        return model

    expected = recorded(tmp_path / "plain", network())
    assert expected["dead_fraction"][0].tolist()[1] == 0.5
    hooked = network()
    for module in hooked:
        getattr(module, kind)(lambda *_: None)
    assert_alike(recorded(tmp_path / "hooked", hooked), expected)


def test_a_reshaped_output_is_no_layers_own(tmp_path: Path) -> None:
    """Behind somebody's hooks stands a view here, of which nobody knows which units are whose."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.phi, self.last = nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)
            self.first.register_full_backward_hook(lambda *_: None)
            self.phi.register_full_backward_hook(lambda *_: None)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.phi(self.first(x).t()).t())
            return y

    torch.manual_seed(0)
    assert "dead_fraction" not in recorded(tmp_path / "run", Turned())


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("spoilt", [float("nan"), 100.0])
def test_batches_whose_gradients_were_cleared_do_not_count(tmp_path: Path, to_none: bool, spoilt: float) -> None:
    expected = recorded(tmp_path / "plain", mlp())["signal_grad_norm"]
    model, (x, y) = mlp(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with watch(model, tmp_path / "run", optimizer=optimizer, every=1) as monitor:
        for i in range(6):
            loss = nn.functional.cross_entropy(model(x * spoilt if i % 2 == 0 else x), y)
            loss.backward()
            if i % 2:
                monitor.step(loss)
                optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
    np.testing.assert_allclose(vectors(tmp_path / "run")["signal_grad_norm"], expected, rtol=1e-4)


class Tree(nn.Module):
    """Halves its batch and calls itself on both, as deep as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf, self.join, self.top = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        if not depth:
            return self._kept(self.leaf(x))
        halves = torch.cat([self(half, depth - 1) for half in x.chunk(2)])
        joined = self._kept(self.join(torch.tanh(halves)))
        return self._kept(self.top(torch.tanh(joined))) if depth == 2 else joined

    def _kept(self, h: Tensor) -> Tensor:
        self.outputs.append(h)
        return h


def test_a_network_that_calls_itself_makes_one_pass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, (x, y) = Tree(), data()
    losses = nn.functional.cross_entropy(model(x), y, reduction="sum")
    grads = torch.autograd.grad(losses, model.outputs)
    names = [*["leaf"] * 2, "join", *["leaf"] * 2, "join", "join", "top"]
    of = dict.fromkeys(("leaf", "join", "top"), 0.0)
    for name, grad in zip(names, grads, strict=True):
        of[name] += grad.square().sum().item() / SAMPLES
    found = recorded(tmp_path / "run", model)["signal_grad_norm"][0]
    assert found.tolist() == pytest.approx([of[name] ** 0.5 for name in ("leaf", "join", "top")], rel=1e-4)


def test_passes_that_nothing_comes_back_through_are_not_held(tmp_path: Path) -> None:
    model, (x, _) = mlp(), data()
    monitor = watch(model, tmp_path / "run", every=1)
    for i in range(50):
        model(x[: 8 + i % 2])
    gc.collect()
    held = [thing for thing in gc.get_objects() if type(thing) is Pass]
    # The last, and the one before it, whose output is let go of as the last begins.
    assert len(held) <= 2
    with pytest.warns(UserWarning, match="no step was recorded"):
        monitor.close()


class Skipping(nn.Module):
    """A stem, and blocks around which a skip path leads, whose last layers start at 0."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)) for _ in range(3))
        self.head = nn.Linear(4, 3)
        for block in self.blocks:
            nn.init.zeros_(block[2].weight)  # type: ignore[index,arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        y: Tensor = self.head(x)
        return y


@pytest.mark.parametrize("embedded", [True, False])
def test_branches_that_start_at_zero_are_no_vanishing_gradient(tmp_path: Path, embedded: bool) -> None:
    torch.manual_seed(0)
    model = Skipping(nn.Embedding(5, 4) if embedded else nn.Linear(5, 4))
    x, y = torch.randint(5, (SAMPLES,)), torch.randint(3, (SAMPLES,))
    with watch(model, tmp_path / "run", every=1) as monitor:
        loss = nn.functional.cross_entropy(model(x if embedded else nn.functional.one_hot(x, 5).float()), y)
        loss.backward()  # type: ignore[no-untyped-call]
        monitor.step(loss)
        assert monitor.verdict().labels == ("healthy",)
    # Past all layers of a branch leads a skip path, and what goes into the branch stands for its first layer.
    trunk = read_run(tmp_path / "run")["trunk_layers"]
    assert [tag[3:] for tag in trunk if "blocks" in tag] == [f"blocks.{i}.0" for i in range(3)]
    records = read_records(tmp_path / "run")
    own, stream = records.vectors["signal_grad_norm"].values[0], records.vectors["stream_grad_norm"].values[0]
    places = [records.layers.index(tag) for tag in trunk if "blocks" in tag]
    assert (own[places] == 0).all()
    assert (stream[places] > 0).all()


class Adapted(nn.Module):
    """A frozen layer, and beside it two small ones of which the second starts at 0 (LoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Linear(4, 4).requires_grad_(False)
        self.a, self.b = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.whole(x) + self.b(self.a(x))
        return y


@pytest.mark.parametrize("weights", [1.0, 1e-4])
def test_adapters_that_start_at_zero_leave_the_rest_to_be_judged(tmp_path: Path, weights: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(part for _ in range(4) for part in (Adapted(), nn.Linear(4, 4), nn.Tanh())), nn.Linear(4, 3)
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain=weights)
    x, y = torch.randn(SAMPLES, 4), torch.randint(3, (SAMPLES,))
    with watch(model, tmp_path / "run", every=1) as monitor:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        monitor.step(loss)
        assert ("vanishing" in monitor.verdict().labels) == (weights < 1)
