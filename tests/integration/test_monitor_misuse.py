"""watch() where loops and networks do what a plain one does not: copies, wrong places, branches, several networks."""

from __future__ import annotations

import copy
import io
import itertools
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradstab import watch
from gradstab.errors import ConfigError
from gradstab.events import read_records
from gradstab.measure.afterwards import judge_records
from gradstab.run_directory import read_run


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        parts += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*parts[:-1])


def signals(directory: Path) -> list[float]:
    found: list[float] = read_records(directory).vectors["signal_grad_norm"].values[0].tolist()
    return found


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, torch.optim.swa_utils.AveragedModel])
def test_copies_of_a_watched_network_leave_its_record_alone(
    tmp_path: Path, copied: Callable[[nn.Module], nn.Module]
) -> None:
    torch.manual_seed(3)
    x, other = torch.randn(5, 4), torch.randn(7, 4)
    found = []
    for name in ("plain", "copied"):
        model = mlp(4, 6, 6, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watch(model, tmp_path / name, optimizer=optimizer) as monitor:
            loss = model(x).square().mean()
            if name == "copied":
                # In the middle of a measured step, where the hooks hold tensors of the graph.
                twin = copied(model)
                twin(other).square().sum().backward()
                assert twin(other).shape == (7, 2)
            loss.backward()
            monitor.step(loss)
            optimizer.step()
        found.append(read_records(tmp_path / name).vectors)
    assert set(found[0]) == set(found[1])
    for name, series in found[0].items():
        assert found[1][name].values.tolist() == series.values.tolist(), name


def test_an_evaluation_before_the_first_step_leaves_the_order_open(tmp_path: Path) -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(3, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.tanh(self.body(x)))
            return y

    model = Swapped()
    with watch(model, tmp_path / "run") as monitor:
        monitor.evaluated(0.7, 0.5)
        loss = model(torch.randn(4, 4)).square().mean()
        loss.backward()
        monitor.step(loss)
    records = read_records(tmp_path / "run")
    assert records.layers == read_run(tmp_path / "run")["layers"] == ["00_body", "01_head"]
    weights = [model.body.weight, model.head.weight]
    assert records.vectors["grad_norm"].values[0].tolist() == pytest.approx([w.grad.norm().item() for w in weights])  # type: ignore[union-attr]
    assert records.scalars["test/loss"].values == pytest.approx([0.7])
    assert records.scalars["test/loss"].steps.tolist() == [0]


@pytest.mark.parametrize("known", [True, False], ids=["optimizer known", "not known"])
def test_a_verdict_before_the_update_does_not_lose_it(tmp_path: Path, known: bool) -> None:
    found = []
    for name in ("plain", "asked"):
        model = mlp(4, 6, 6, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options: dict[str, Any] = {"optimizer": optimizer} if known else {}
        with watch(model, tmp_path / name, every=1, **options) as monitor:
            for step in range(3):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(torch.ones(5, 4)), torch.tensor([0, 1, 0, 1, 0]))
                loss.backward()
                monitor.step(loss)
                if name == "asked":
                    verdict = monitor.verdict()
                    assert verdict.step == step
                    assert "tiny_updates" not in [finding.rule for finding in verdict.findings]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                optimizer.step()
        found.append(read_records(tmp_path / name))
    assert (found[0].vectors["update_ratio"].values > 0).all()
    assert set(found[0].vectors) == set(found[1].vectors)
    assert ("clip_scale" in found[0].vectors) == known
    for name, series in found[0].vectors.items():
        assert found[1].vectors[name].values.tolist() == series.values.tolist(), name


@pytest.mark.parametrize("every", [None, 1, 3])
def test_a_loss_that_is_none_costs_no_other_step(tmp_path: Path, every: int | None) -> None:
    model, x = mlp(4, 6, 2), torch.randn(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = []
    with watch(model, tmp_path / "run", optimizer=optimizer, every=every) as monitor:
        for number in range(8):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            if number == 4:
                for wrong in (torch.ones(2), torch.tensor(1j), "low"):
                    with pytest.raises(ConfigError, match=r"^loss"):
                        monitor.step(wrong)  # type: ignore[arg-type]
            monitor.step(loss)
            told.append(loss.item())
            optimizer.step()
    records = read_records(tmp_path / "run")
    assert records.scalars["train/loss"].steps.tolist() == list(range(8))
    assert records.scalars["train/loss"].values.tolist() == pytest.approx(told)
    measured = [] if every is None else list(range(0, 8, every))
    assert ("update_ratio" in records.vectors) == bool(measured)
    if measured:
        assert records.vectors["update_ratio"].steps.tolist() == measured


@pytest.mark.parametrize("wrong_at", [0, 1, 5])
@pytest.mark.parametrize("way", ["look", "supply", "clip"])
def test_a_loss_that_is_none_leaves_the_open_step_as_it_was(tmp_path: Path, way: str, wrong_at: int) -> None:
    model, x = mlp(4, 6, 2), torch.randn(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, norms = [], []
    with watch(model, tmp_path / "run", optimizer=optimizer) as monitor:
        for number in range(8):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            losses.append(loss.item())
            norms.append(
                float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
            )
            if way == "look":
                monitor.look()
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            else:
                monitor.step(*([] if way == "supply" else [loss]))
            if number == wrong_at:
                with pytest.raises(ConfigError, match=r"^loss: has shape \[2\]"):
                    monitor.step(torch.ones(2))
            if way == "look":
                monitor.step(loss)
            elif way == "supply":
                monitor.supply(loss)
            else:
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
    scalars = read_records(tmp_path / "run").scalars
    assert scalars["train/loss"].values.tolist() == pytest.approx(losses)
    assert scalars["global_grad_norm/pre_clip"].values.tolist() == pytest.approx(norms)
    clipped = norms if way == "supply" else [0.01] * 8
    assert scalars["global_grad_norm/post_clip"].values.tolist() == pytest.approx(clipped, rel=1e-4)


LEFT = """
import gc, os, sys, torch
from gradstab import watch
def train(place):
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = watch(model, place, optimizer=optimizer)
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 3)).square().mean()
        loss.backward()
        monitor.step(loss)
        optimizer.step()
    return monitor
if sys.argv[2] == "dropped":
    train(sys.argv[1])
    gc.collect()
    os._exit(0)
monitor = train(sys.argv[1])
if (child := os.fork()) == 0:
    try:
        with monitor:
            getattr(monitor, sys.argv[2])()
    except Exception as error:
        print(type(error).__name__)
    finally:
        sys.stdout.flush()
        os._exit(0)
os.waitpid(child, 0)
monitor.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
@pytest.mark.parametrize(("what", "said"), [("dropped", ""), ("close", ""), ("verdict", "GradstabError\n")])
def test_dropped_ones_are_ended_in_order_and_a_forked_child_writes_nothing(
    tmp_path: Path, what: str, said: str
) -> None:
    command = [sys.executable, "-W", "error", "-c", LEFT, str(tmp_path / "run"), what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (said, "")
    assert read_run(tmp_path / "run")["status"] == "completed"
    assert read_records(tmp_path / "run").scalars["train/loss"].steps.tolist() == list(range(10))


def test_a_verdict_between_turns_does_not_split_the_round(tmp_path: Path) -> None:
    model = mlp(4, 6, 2)
    optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2)]
    with watch(model, tmp_path / "run", optimizer=optimizers, every=1) as monitor:
        for _ in range(2):
            for optimizer in optimizers:
                model.zero_grad()
                loss = model(torch.ones(3, 4)).square().mean()
                loss.backward()
                monitor.step(loss, optimizer=optimizer)
                optimizer.step()
                monitor.verdict()
    assert read_run(tmp_path / "run")["steps"] == 2


def test_a_loop_that_ends_before_the_update_has_no_update_of_zero(tmp_path: Path) -> None:
    model = mlp(4, 6, 2)
    with watch(model, tmp_path / "run", optimizer=torch.optim.SGD(model.parameters(), lr=0.1)) as monitor:
        loss = model(torch.ones(3, 4)).square().mean()
        loss.backward()
        monitor.step(loss)
    assert "update_ratio" not in read_records(tmp_path / "run").vectors


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.d = mlp(3, 5, 5, 5, 4), mlp(4, 6, 6, 1)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.a, self.b = mlp(4, 6, 6), mlp(6, 5, 2), mlp(6, 5, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.trunk(x))
        total: Tensor = self.a(h).sum() + self.b(h).sum()
        return total


class Skips(nn.Module):
    """Branches that come together again, an output changed in place, and a layer that a checkpoint recomputes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.one, self.two, self.beside, self.last = (nn.Linear(4, 4) for _ in range(4))
        self.phi = nn.ReLU(inplace=how == "in place")

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        h = self.phi(self.one(x))
        if self.how == "branch":
            h = self.phi(self.two(h)) + self.phi(self.beside(h))
        elif self.how == "checkpoint":
            y: Tensor = checkpoint(lambda t: self.phi(self.beside(self.phi(self.two(t)))), h, use_reentrant=True)  # type: ignore[assignment]
            h = y
        else:
            h = self.phi(self.beside(self.phi(self.two(h)))) + h
        out: Tensor = self.phi(self.last(h)).square().mean()
        return out


@pytest.mark.parametrize("detached", [True, False])
def test_networks_of_different_optimizers_share_no_line_over_depth(tmp_path: Path, detached: bool) -> None:
    model = Gan()
    optimizers = [torch.optim.Adam(m.parameters()) for m in (model.d, model.g)]
    with watch(model, tmp_path / "run", optimizer=optimizers) as monitor:
        for i, optimizer in enumerate(optimizers):
            fake = model.g(torch.randn(5, 3))
            loss = model.d(fake.detach() if detached and i == 0 else fake).mean()
            loss.backward()
            monitor.step(loss, optimizer=optimizer)
            optimizer.step()
            model.zero_grad()
    known = read_run(tmp_path / "run")
    assert [tag[3:] for tag in known["depth_layers"]] == ["g.0", "g.2", "g.4"]
    assert "3 of 5 layers" in known["notes"][0]
    profile = read_records(tmp_path / "run").vectors["signal_grad_norm"].values[0]
    slope = np.polyfit(range(3), np.log(profile[:3]), 1)[0]
    assert known["depth_factor"] == pytest.approx(math.exp(-slope))


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (Heads, ["trunk.0", "b.0", "b.2"]),
        (lambda: Skips("branch"), ["one", "two", "last"]),
        (lambda: Skips("skip"), ["one", "two", "beside", "last"]),
        (lambda: Skips("in place"), ["one", "two", "beside", "last"]),
        (lambda: Skips("checkpoint"), ["one", "two", "beside", "last"]),
    ],
    ids=["heads", "branch", "skip", "in place", "checkpoint"],
)
def test_the_line_over_depth_follows_one_chain(
    tmp_path: Path, make: Callable[[], nn.Module], layers: list[str]
) -> None:
    model = make()
    with watch(model, tmp_path / "run") as monitor:
        loss = model(torch.randn(5, 4))
        loss.backward()
        monitor.step(loss)
    known = read_run(tmp_path / "run")
    assert sorted(tag[3:] for tag in known["depth_layers"]) == sorted(layers)
    assert bool(known["notes"]) == (len(layers) == 3)
    assert judge_records(read_records(tmp_path / "run"), known).labels == tuple(known["verdict"]["labels"])


def test_a_frozen_layer_stays_in_the_chain_it_stands_in(tmp_path: Path) -> None:
    model = mlp(4, 5, 5, 5, 5, 2)
    model[4].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with watch(model, tmp_path / "run", optimizer=optimizer) as monitor:
        loss = model(torch.ones(3, 4)).square().mean()
        loss.backward()
        monitor.step(loss)
    known = read_run(tmp_path / "run")
    assert known["depth_layers"] == ["00_0", "01_2", "02_4", "03_6"]
    assert known["notes"] == []


def test_a_frozen_layer_between_two_networks_does_not_join_them(tmp_path: Path) -> None:
    model = Gan()
    model.d[0].requires_grad_(False)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.g, model.d[2:])]
    with watch(model, tmp_path / "run", optimizer=optimizers) as monitor:
        loss = model.d(model.g(torch.ones(5, 3))).square().mean()
        loss.backward()
        monitor.step(loss)
    assert [tag[3:] for tag in read_run(tmp_path / "run")["depth_layers"]] == ["g.0", "g.2", "g.4", "d.0"]


def test_layers_that_checkpoints_recompute_keep_their_order(tmp_path: Path) -> None:
    from torch.utils.checkpoint import checkpoint

    model = mlp(4, 5, 5, 5, 2)
    found = []
    for name in ("plain", "checkpointed"):
        with watch(model, tmp_path / name) as monitor:
            h = torch.ones(3, 4, requires_grad=True)
            for block in (model[:2], model[2:4], model[4:]):
                h = block(h) if name == "plain" else checkpoint(block, h, use_reentrant=True)
            loss = h.square().mean()
            loss.backward()
            monitor.step(loss)
        known = read_run(tmp_path / name)
        found.append((known["layers"], known["depth_layers"], known["depth_factor"]))
    assert found[0] == found[1]


@pytest.mark.parametrize("place", ["before backward", "after zero_grad", "after zeroing"])
def test_a_step_without_gradients_is_complained_of_once(tmp_path: Path, place: str) -> None:
    model = mlp(4, 6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        warnings.catch_warnings(record=True) as said,
        watch(model, tmp_path / "run", every=1, optimizer=optimizer) as monitor,
    ):
        warnings.simplefilter("always")
        for _ in range(3):
            loss = model(torch.ones(3, 4)).square().mean()
            if place != "before backward":
                loss.backward()
                optimizer.zero_grad(set_to_none=place == "after zero_grad")
            monitor.step(loss)
    assert str(said[0].message).startswith("watch: all gradients are missing or 0 at step 0")
    assert said[0].filename == __file__
    assert len(said) == len(read_run(tmp_path / "run")["notes"]) == 1
    assert "\n" not in str(said[0].message)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("reached", ["all layers", "the last layer"])
def test_norms_after_clipping_are_never_the_next_batchs(tmp_path: Path, set_to_none: bool, reached: str) -> None:
    model = mlp(4, 6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, tmp_path / "run", optimizer=optimizer) as monitor:
        for step in range(4):
            optimizer.zero_grad(set_to_none=set_to_none)
            h = model[:2](torch.full((3, 4), 1.0 + step))
            loss = model[2](h if reached == "all layers" else h.detach()).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert "grad_norm_post_clip" not in read_records(tmp_path / "run").vectors


class Block(nn.Module):
    """A residual block as torchvision writes it."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.norm, self.phi = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.b(self.phi(self.a(x))))
        if self.in_place:
            y += x
        out: Tensor = self.phi(y)
        return out


@pytest.mark.parametrize("in_place", [True, False])
def test_an_output_changed_in_place_is_not_what_the_activation_takes_in(tmp_path: Path, in_place: bool) -> None:
    model = Block(in_place=in_place)
    with watch(model, tmp_path / "run") as monitor:
        loss = model(torch.randn(5, 4)).square().mean()
        loss.backward()
        monitor.step(loss)
    vectors = read_records(tmp_path / "run").vectors
    assert np.isfinite(vectors["activation_mean"].values[0]).tolist() == ([True] if in_place else [True, True])


@pytest.mark.parametrize("shape", ["container", "siamese"])
def test_what_belongs_to_one_batch(tmp_path: Path, shape: str) -> None:
    torch.manual_seed(1)
    x, found = torch.randn(6, 4), []
    for how in ("whole", "parts"):
        body = mlp(4, 5, 1)
        model = nn.ModuleDict({"body": body}) if shape == "container" else body
        with watch(model, tmp_path / how) as monitor:
            if shape == "container":
                for part in x.chunk(1 if how == "whole" else 3):
                    loss = body(part).square().mean() / (1 if how == "whole" else 3)
                    loss.backward()
            elif how == "parts":
                loss = (body(x) * body(-x)).mean()
                loss.backward()
            else:
                loss = torch.zeros(())
                body(x).mean().backward()
            monitor.step(loss)
        found.append(signals(tmp_path / how))
        if shape == "siamese" and how == "parts":
            outputs: list[Tensor] = []
            handle = body[2].register_forward_hook(lambda _m, _a, h, outputs=outputs: outputs.append(h))
            loss = (body(x) * body(-x)).mean()
            handle.remove()
            # √(mean over the 6 samples of ‖∂ℓ_i/∂h_i‖²), h being both of a sample's outputs.
            squares = sum((6 * g).square().sum(1) for g in torch.autograd.grad(loss, outputs))
            assert found[-1][1] == pytest.approx(squares.mean().sqrt().item(), rel=1e-5)  # type: ignore[union-attr]
    if shape == "container":
        assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_the_interpreters_end_is_silent_and_a_forked_child_closes_nothing(tmp_path: Path) -> None:
    code = """
import os, shutil, sys, torch
from gradstab import watch
left, gone = (watch(torch.nn.Linear(2, 1), f"{sys.argv[1]}/{name}") for name in ("left", "gone"))
shutil.rmtree(gone.directory)
if os.fork() == 0:
    sys.exit(0)
os.wait()
print(open(f"{left.directory}/run.json").read().count('"running"'))
"""
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["1"]
    assert "Traceback" not in answer.stderr
    assert "no step was recorded" in answer.stderr
    assert read_run(tmp_path / "left")["status"] != "running"
    assert [path.name for path in tmp_path.iterdir()] == ["left"]


class Bypassed(nn.Module):
    """A stem, two blocks whose branches start at ``scale``, with a skip path beside each or not, and a head."""

    def __init__(self, scale: float, *, skips: bool) -> None:
        super().__init__()
        self.stem, self.between, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(2))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2))
        self.scale, self.skips = scale, skips

    def forward(self, x: Tensor) -> Tensor:
        h = self.relus[0](self.stem(x))
        for number, block in enumerate(self.blocks):
            h = (h if self.skips else 0.0) + self.scale * block(h)
            h = self.relus[1](self.between(h)) if number == 0 else h
        logits: Tensor = self.head(h)
        return logits


@pytest.mark.parametrize(("scale", "skips", "label"), [(1e-4, True, "healthy"), (1e-4, False, "vanishing")])
def test_small_gradients_beside_a_skip_path_are_no_vanishing(
    tmp_path: Path, scale: float, skips: bool, label: str
) -> None:
    torch.manual_seed(0)
    model = Bypassed(scale, skips=skips)
    x, y = torch.randn(64, 4), torch.randint(3, (64,))
    with watch(model, tmp_path / "run") as monitor:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        monitor.step(loss)
    known, records = read_run(tmp_path / "run"), read_records(tmp_path / "run")
    trunk = [tag[3:] for tag in known["trunk_layers"]]
    chain = ["stem", "blocks.0.0", "between", "blocks.1.0"]
    assert [tag[3:] for tag in known["depth_layers"]] == chain
    assert trunk == chain
    assert ("stream_grad_norm" in records.vectors) == skips
    # What is left out is small indeed: by δ of all layers alike, both would be told that they vanish.
    assert np.ptp(np.log10(records.vectors["signal_grad_norm"].values[0][:-1])) > 2.2
    assert label in known["verdict"]["labels"]
    assert judge_records(records, known).labels == tuple(known["verdict"]["labels"])
