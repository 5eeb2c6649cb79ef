"""What is kept of the first value that was not finite, and the story that ``gradstab explain`` makes of it."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradstab import assembly, checkpoint, session, training
from gradstab.assembly import build
from gradstab.catching import Catch
from gradstab.config import from_hydra
from gradstab.data import load_data
from gradstab.events import read_records
from gradstab.explaining import Explanation, explain
from gradstab.forensics import keeper, story
from gradstab.forensics.snapshot import Snapshot
from gradstab.measure.recorder import NonFinite, StepRecord
from gradstab.parts import Parts
from gradstab.progress import Outcome
from gradstab.run_directory import read_config
from gradstab.runner import run
from tests.conftest import Compose, Here, Train

SMALL = ("model.depth=5", "model.width=32", "steps=60")
LARGE_RATE = (*SMALL, "optimizer=sgd", "optimizer.lr=10")
NOISY = (*SMALL, "model.norm=batch", "model.dropout=0.3", "optimizer=adam", "batch_size=32")
Tamper = Callable[[Parts, int], None]


@pytest.fixture
def tamper(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tamper], list[dict[str, Any]]]:
    """Have ``change`` called with parts and step before every step; gives the states of parts from just before them."""

    def installed(change: Tamper) -> list[dict[str, Any]]:
        original, states = training.train_step, []

        def step(parts: Parts, number: int, *rest: Any, **options: Any) -> Any:
            with torch.no_grad():
                change(parts, number)
            states.append({key: value.clone() for key, value in parts.model.state_dict().items()})
            states[-1]["generator"] = torch.get_rng_state()
            return original(parts, number, *rest, **options)

        for module in (training, keeper):
            monkeypatch.setattr(module, "train_step", step)
        return states

    return installed


def _weight(parts: Parts, layer: int) -> nn.Parameter:
    return parts.model.layers[layer].weight_parameters()[0]


def _kept(record: dict[str, Any]) -> Snapshot:
    assert record["forensics"] == "forensics/snapshot.json"
    return Snapshot.read(record["directory"] / "forensics")


def _explained(record: dict[str, Any]) -> Explanation:
    found = explain(record["directory"])
    assert isinstance(found, Explanation)
    return found


def _state_before(directory: Path) -> dict[str, Any]:
    content = torch.load(directory / "forensics" / "before.pt", weights_only=True)
    state: dict[str, Any] = content["parts"]
    return state


def _first_broken_output(record: dict[str, Any]) -> int | None:
    """Which layer's h is the first that is not finite, found another way: layer by layer from the state on disk."""
    config = from_hydra(read_config(record["directory"]))
    parts = build(config)
    state = _state_before(record["directory"])
    parts.model.load_state_dict(state["model"])
    torch.set_rng_state(state["generators"]["cpu"])
    data = load_data(config.data.name, **config.data.knobs).train
    outputs: list[Tensor] = []
    for layer in parts.model.layers:
        layer.preactivation.register_forward_hook(lambda _m, _i, h: outputs.append(h.detach().clone()))
    parts.model.train()
    parts.model(data.inputs[_kept(record).batch])
    broken = [i for i, h in enumerate(outputs) if not np.isfinite(h.numpy()).all()]
    return broken[0] if broken else None


def test_too_large_a_rate_is_told_from_first_layer_to_a_clip_that_prevents_it(train: Train) -> None:
    record = train(*LARGE_RATE)
    assert record["status"] == "diverged"
    kept, found = _kept(record), _explained(record)
    assert (kept.step, kept.quantity, kept.learning_rate) == (record["steps"], "loss", 10)
    assert kept.step == record["non_finite"]["step"] > 1
    first = _first_broken_output(record)
    assert first is not None
    assert kept.origin.layer == kept.layers[first] == record["non_finite"]["layer"]
    assert kept.origin.kind == "activation"
    assert kept.origin.layer in record["reason"]
    assert len(kept.batch) == len(set(kept.batch)) == 128
    assert found.replay.confirmed
    assert found.replay.exact
    assert found.growth is not None
    assert found.growth.grew
    assert found.growth.factor > 1e3
    catch = found.catch
    assert catch.max_norm is not None
    assert catch.first_step is not None
    assert catch.first_step < kept.step
    assert catch.control is not None
    assert catch.control.steps == kept.step
    assert catch.proof is not None
    clipped = train(*LARGE_RATE, "clip=norm", f"clip.max_norm={catch.max_norm}")
    assert clipped["status"] == "completed"
    assert clipped["train_loss"] == catch.proof.last_loss
    assert "forensics" not in clipped


def test_a_limit_that_is_not_tried_is_one_that_would_have_acted(train: Train) -> None:
    record = train(*SMALL, "optimizer=sgd", "optimizer.lr=1e25")
    (record["directory"] / "forensics" / "before.pt").unlink()
    found = _explained(record)
    # Only the first step's norm is known.
    (norm,) = found.snapshot.past.global_grad_norm[:-1]
    assert found.catch.proof is None
    assert found.catch.max_norm is not None
    assert 0 < found.catch.max_norm < norm
    assert found.catch.first_step == 0


def test_the_ring_holds_the_last_twenty_steps_as_the_event_file_has_them(train: Train) -> None:
    record = train("experiment=linear_regression", "optimizer.lr=0.2", "clip=norm", "clip.max_norm=1e30")
    past, records = _kept(record).past, read_records(record["directory"])
    last = record["steps"]
    assert past.step == list(range(last - 20, last + 1))
    assert past.learning_rate == [0.2] * 21
    for values, series in (
        (past.loss, records.scalars["train/loss"]),
        (past.global_grad_norm, records.scalars["global_grad_norm/pre_clip"]),
    ):
        assert np.float32(values).tolist() == np.float32(series.values[-21:]).tolist()
    assert np.array_equal(past.layer_grad_norm, records.vectors["grad_norm"].values[-21:])
    assert past.clip_scale == [1.0] * 21


def test_growth_on_a_line_is_that_of_its_hessian(train: Train) -> None:
    found = _explained(train("experiment=linear_regression", "optimizer.lr=0.2"))
    x = np.array([1.0, 2, 3, 4])
    largest = np.linalg.eigvalsh(2 * np.array([[(x**2).mean(), x.mean()], [x.mean(), 1.0]])).max()
    assert found.growth is not None
    assert found.growth.factor == pytest.approx(abs(1 - 0.2 * largest), rel=1e-5)
    assert found.growth.layer == 0
    assert found.growth.layer_factor == pytest.approx(abs(1 - 0.2 * largest), rel=1e-5)
    # The error overflows as it is squared, with outputs of 1e19.
    assert (found.snapshot.origin.kind, found.snapshot.origin.layer) == ("loss", None)
    assert found.snapshot.look.activation[-1] < 1e20
    assert found.catch.proof is not None
    assert found.catch.proof.calm


def test_weights_too_large_from_the_start_are_no_matter_of_clipping(train: Train) -> None:
    record = train("experiment=exploding_init", "init.gain=1000", "model.width=64", "steps=5")
    found = _explained(record)
    kept = found.snapshot
    assert (kept.step, kept.origin.kind) == (0, "activation")
    first = _first_broken_output(record)
    assert first is not None
    assert kept.origin.layer == kept.layers[first]
    assert all(math.isfinite(value) for value in kept.look.activation[:first])
    # Each layer of a ReLU network under He's init keeps the length, so that the gain is what is left.
    growth = (kept.look.activation[first - 1] / kept.look.activation[0]) ** (1 / (first - 1))
    assert growth == pytest.approx(1000, rel=0.15)
    assert found.catch == Catch(reason=found.catch.reason)
    assert "initial weights are too large" in found.catch.reason
    assert found.replay.exact


@pytest.mark.parametrize("layer", [0, 2, 5])
def test_weights_that_an_update_broke_are_named(train: Train, tamper: Callable[..., Any], layer: int) -> None:
    def change(parts: Parts, step: int) -> None:
        if step == 7:
            _weight(parts, layer).view(-1)[3] = math.inf

    tamper(change)
    record = train(*NOISY)
    kept = _kept(record)
    assert (kept.step, kept.origin.kind, kept.origin.layer) == (7, "weights", kept.layers[layer])
    assert record["non_finite"] == {"step": 7, "quantity": "loss", "layer": kept.layers[layer]}
    assert [math.isfinite(value) for value in kept.look.weight] == [i != layer for i in range(6)]
    found = _explained(record)
    assert found.replay.exact
    assert found.growth is not None
    assert not found.growth.grew
    # Started anew, the run has nobody to break its weights.
    assert "does not break" in found.catch.reason


def test_the_checkpoint_is_of_just_before_with_dropout_and_running_averages(
    train: Train, tamper: Callable[..., Any]
) -> None:
    def change(parts: Parts, step: int) -> None:
        if step == 9:
            _weight(parts, 3).fill_(1e38)

    states = tamper(change)
    record = train(*NOISY, "model.norm_position=after")
    assert record["steps"] == 9
    before = states[9]
    state = _state_before(record["directory"])
    assert torch.equal(state["generators"]["cpu"], before.pop("generator"))
    assert state["model"].keys() == before.keys()
    assert all(torch.equal(state["model"][key], value) for key, value in before.items())
    assert any("running_mean" in key for key in before)
    kept, found = _kept(record), _explained(record)
    first = _first_broken_output(record)
    assert first is not None
    assert kept.origin.layer == kept.layers[first]
    assert found.replay.exact
    # The replay tells other masks from these: with another stream, layers above dropout come out otherwise.
    path = record["directory"] / "forensics" / "before.pt"
    content = torch.load(path, weights_only=True)
    content["parts"]["generators"]["cpu"] = torch.Generator().manual_seed(5).get_state()
    torch.save(content, path)
    assert not _explained(record).replay.exact


def test_a_gradient_that_overflows_only_on_the_way_back(train: Train, tamper: Callable[..., Any]) -> None:
    def change(parts: Parts, step: int) -> None:
        if step == 2:
            for layer, size in enumerate((1e-38, 1e22, 1e20)):
                _weight(parts, layer).fill_(size)

    tamper(change)
    common = ("model.depth=2", "model.width=8", "act=identity", "loss=mse", "model.bias=false", "optimizer=sgd")
    record = train(*common, "steps=5", "optimizer.lr=1e-3")
    kept = _kept(record)
    assert (kept.step, kept.quantity, kept.layer) == (2, "gradient", "00_hidden")
    assert (kept.origin.kind, kept.origin.layer, kept.origin.direction) == ("signal", "00_hidden", "backward")
    assert all(map(math.isfinite, kept.look.activation))
    assert [math.isfinite(value) for value in kept.look.signal] == [False, True, True]
    assert record["reason"] == "non-finite gradient at step 2, first in layer 00_hidden on the way back"
    assert _explained(record).replay.exact


def test_a_norm_that_only_its_squares_broke(train: Train, tamper: Callable[..., Any]) -> None:
    def change(parts: Parts, step: int) -> None:
        if step == 2:
            _weight(parts, 0).fill_(1e200)
            _weight(parts, 1).fill_(1e-200)

    tamper(change)
    common = ("model.depth=1", "model.width=8", "act=identity", "model.bias=false", "precision=float64")
    kept = _kept(train(*common, "steps=5"))
    assert (kept.quantity, kept.origin.kind, kept.origin.layer) == ("gradient", "norm", "01_output")
    assert all(math.isfinite(value) for value in (*kept.look.activation, *kept.look.signal))


def test_what_breaks_between_layers_is_named(train: Train, tamper: Callable[..., Any]) -> None:
    def change(parts: Parts, step: int) -> None:
        if step == 1:
            for module in parts.model.modules():
                if isinstance(module, nn.PReLU):
                    module.weight.fill_(1e38)
                    break
            _weight(parts, 0).mul_(1e3)

    tamper(change)
    record = train(*SMALL, "act=prelu")
    origin = _kept(record).origin
    assert (origin.kind, origin.layer) == ("activation", "01_hidden")
    assert origin.name is not None
    assert origin.name.startswith("PReLU")


def test_a_bias_that_an_update_broke_is_not_called_weights(train: Train, tamper: Callable[..., Any]) -> None:
    def change(parts: Parts, step: int) -> None:
        if step == 3:
            parts.model.layers[2].affine.bias.fill_(math.inf)  # type: ignore[operator, union-attr]
            _weight(parts, 4).fill_(math.nan)

    tamper(change)
    record = train(*SMALL)
    kept = _kept(record)
    assert (kept.origin.kind, kept.origin.layer, kept.origin.name) == ("weights", "02_hidden", "bias")
    assert story.first(kept) == (
        "the bias of layer 02_hidden (and the weights of 1 more layer) was not finite when step 3 began: "
        "the update before it broke it"
    )
    assert "first in the bias of layer 02_hidden before it" in record["reason"]


def test_the_largest_weight_is_no_bias(here: Here, train: Train, tamper: Callable[..., Any]) -> None:
    def change(parts: Parts, step: int) -> None:
        if step == 3:
            parts.model.layers[2].affine.bias.fill_(3e38)  # type: ignore[operator, union-attr]
            _weight(parts, 3).fill_(4.0)

    tamper(change)
    record = train(*SMALL)
    kept = _kept(record)
    assert (kept.origin.kind, kept.origin.layer) == ("activation", "03_hidden")
    state = _state_before(record["directory"])["model"]
    assert kept.look.weight == [float(value.abs().max()) for name, value in state.items() if name.endswith(".weight")]
    told = " ".join(here("explain", str(record["directory"])).stdout.split())
    assert "the largest weight was 4 by then, in layer 03_hidden" in told


def test_what_weights_are_computed_from_is_called_so(here: Here, train: Train) -> None:
    record = train(
        "model.depth=3", "constraint=spectral_norm", "optimizer=sgd", "optimizer.lr=1e21", "seed=1", "steps=9"
    )
    told = " ".join(here("explain", str(record["directory"])).stdout.split())
    assert "the largest parameter that spectral_norm computes weights from was " in told
    assert "largest weight" not in told


def test_a_weight_norm_that_overflowed_forward_is_told_with_the_gradient(train: Train) -> None:
    record = train(*SMALL, "constraint=weight_norm", "optimizer=sgd", "optimizer.lr=100")
    kept, found = _kept(record), _explained(record)
    assert (kept.origin.kind, kept.origin.layer) == ("gradient", "05_output")
    name = str(kept.origin.name).partition("_WeightNorm ")[2]
    v = _state_before(record["directory"])["model"][f"{name.rpartition('.')[0]}.original1"]
    # Its squares are beyond float32, and not beyond float64.
    assert v.isfinite().all()
    assert (v.double() ** 2).sum(1).max() > torch.finfo(torch.float32).max
    assert story.first(kept).startswith("the weight gradient of layer 05_output, on the way back: ")
    assert "the norm that weight norm divides a unit's weights by had overflowed on the way forward" in story.first(
        kept
    )
    assert found.replay.exact


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("model.depth=6", "model.residual=scaled", "model.norm=layer", "optimizer.lr=1e22"), "LayerNorm"),
        (("model=lenet5", "model.residual=scaled", "model.norm=batch", "optimizer.lr=1e21"), "Conv2d"),
        (("model=lenet5", "model.residual=add", "optimizer.lr=2"), "Conv2d"),
        (("model.depth=3", "constraint=spectral_norm", "optimizer.lr=1e21", "seed=1"), "_SpectralNorm"),
    ],
    ids=["norm", "projection", "projection without norm", "spectral norm"],
)
def test_what_breaks_inside_a_block_or_a_weight_is_named(train: Train, words: tuple[str, ...], named: str) -> None:
    record = train(*words, "optimizer=sgd", "steps=20")
    kept, found = _kept(record), _explained(record)
    first = _first_broken_module(record)
    kind, place = str(kept.origin.name).split()
    assert (kind, place) == (named, first)
    assert kept.origin.layer == kept.layers[_first_broken_output(record) or 0]
    assert found.replay.exact
    text = story.first(kept)
    if named == "_SpectralNorm":
        assert f"the weights that spectral norm computes for layer {kept.origin.layer}" in text
        assert "|h|" not in text
        assert "spectral norm" in record["reason"]
    else:
        assert f"layer {kept.origin.layer} in {named} {first}, on the way forward" in text


def _first_broken_module(record: dict[str, Any]) -> str | None:
    """The first module without parts whose output is not finite, in the order of a forward pass."""
    config = from_hydra(read_config(record["directory"]))
    parts = build(config)
    parts.model.load_state_dict(_state_before(record["directory"])["model"])
    broken: list[str] = []

    def look(name: str, y: Tensor) -> None:
        if not np.isfinite(y.detach().numpy()).all():
            broken.append(name)

    for name, module in parts.model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _m, _i, y, name=name: look(name, y))
    parts.model.train()
    data = load_data(config.data.name, **config.data.knobs).train
    parts.model(data.inputs[_kept(record).batch])
    return broken[0] if broken else None


def test_the_first_skipped_step_is_kept_and_the_run_goes_on_as_without(
    train: Train, tamper: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spare: list[Tensor] = []

    def change(parts: Parts, step: int) -> None:
        if step in (6, 20):
            spare.append(_weight(parts, 2).clone())
            _weight(parts, 2).fill_(math.nan)
        if step in (7, 21):
            _weight(parts, 2).copy_(spare.pop())

    states = tamper(change)
    skipping = (*NOISY, "on_divergence=skip", "steps=30")
    record = train(*skipping)
    assert record["skipped_steps"] == 2
    kept = _kept(record)
    assert (kept.step, kept.skipped, kept.origin.layer) == (6, True, "02_hidden")
    assert _explained(record).replay.exact
    watched = list(states)
    states.clear()
    monkeypatch.setattr(session, "Keeper", lambda *_: _Absent())
    unwatched = train(*skipping)
    assert "forensics" not in unwatched
    assert len(states) == len(watched) == 30
    # NaN, where it was put, is equal to itself here.
    for one, other in zip(watched, states, strict=True):
        assert all(torch.equal(one[key].nan_to_num(7), value.nan_to_num(7)) for key, value in other.items())


class _Absent:
    record: dict[str, str] = {}  # noqa: RUF012

    def before(self, step: int, indices: Tensor) -> None:
        pass

    def after(self, record: StepRecord) -> None:
        pass

    def looked(self, broken: NonFinite | None) -> NonFinite | None:
        return broken

    def ended(self, outcome: Outcome) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("extra", [("constraint=spectral_norm",), ("clip=zclip",), ("model=lenet5", "batch_size=16")])
def test_a_run_that_stays_finite_is_the_same_with_forensics(
    train: Train, tamper: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...]
) -> None:
    lenet = "model=lenet5" in extra
    options = [o for o in NOISY if not (lenet and o.startswith(("model.depth", "model.width")))]
    states = tamper(lambda _parts, _step: None)
    record = train(*options, *extra, "steps=8")
    assert "forensics" not in record
    assert not (record["directory"] / "forensics").exists()
    watched = list(states)
    states.clear()
    monkeypatch.setattr(session, "Keeper", lambda *_: _Absent())
    train(*options, *extra, "steps=8")
    for one, other in zip(watched, states, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], value) for key, value in other.items())


def test_spectral_norms_vectors_are_of_before_the_step(train: Train, tamper: Callable[..., Any]) -> None:
    def change(parts: Parts, step: int) -> None:
        if step == 3:
            parts.model.layers[1].affine.bias.fill_(math.inf)  # type: ignore[operator, union-attr]

    states = tamper(change)
    record = train(*SMALL, "constraint=spectral_norm")
    state = _state_before(record["directory"])["model"]
    vectors = [key for key in state if key.endswith("_u")]
    assert len(vectors) == 6
    assert all(torch.equal(state[key], states[3][key]) for key in vectors)
    assert not any(torch.equal(state[key], states[2][key]) for key in vectors)
    assert _explained(record).replay.exact


def test_without_norms_the_story_rests_on_losses(train: Train) -> None:
    record = train(*LARGE_RATE, "measure=none")
    found = _explained(record)
    assert found.snapshot.past.layer_grad_norm == []
    assert found.growth is not None
    assert found.growth.quantity == "loss"
    assert found.catch.max_norm is None
    assert "measure=none" in found.catch.reason
    assert found.replay.exact


def test_a_test_loss_that_breaks_alone_is_kept_too(train: Train) -> None:
    record = train("model.depth=3", "model.width=16", "optimizer.lr=1e30", "steps=1")
    assert record["status"] == "diverged"
    kept, found = _kept(record), _explained(record)
    assert (kept.quantity, kept.step, kept.batch) == ("test loss", 1, [])
    assert kept.origin.kind == "activation"
    assert found.replay.exact
    assert found.catch.max_norm is None


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_losses_looked_at_in_bulk_lead_to_the_same_snapshot(
    train: Train, tamper: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    """As on a GPU, where a broken step shows up to 64 steps late."""

    def change(parts: Parts, step: int) -> None:
        if step == 101:
            _weight(parts, 2).fill_(1e37)

    states = tamper(change)
    options = (*NOISY, "clip=zclip", f"schedule={schedule}", "eval_every=50", "steps=200")
    at_once = train(*options)
    assert len(states) == 102
    original = assembly.build

    def in_bulk(*args: Any) -> Parts:
        parts = original(*args)
        parts.check_every_step = False
        return parts

    with monkeypatch.context() as patch:
        patch.setattr("gradstab.runner.build", in_bulk)
        late = train(*options)
    # How late it shows depends on the clock too.
    assert len(states) > 102 + 102
    one, other = _kept(at_once), _kept(late)
    assert one.step == 101
    assert str(replace(other, exact=True)) == str(one)
    assert not other.exact
    assert late["non_finite"] == at_once["non_finite"]
    assert late["reason"] == at_once["reason"]
    assert late["steps"] == at_once["steps"]
    assert str(late["test_loss"]) == str(at_once["test_loss"])
    before = [_state_before(record["directory"]) for record in (at_once, late)]
    assert str(before[0]) == str(before[1])
    assert all(torch.equal(before[1]["model"][key], value) for key, value in before[0]["model"].items())
    assert _explained(late).replay.exact


def test_a_disk_that_is_full_does_not_hide_the_divergence(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    record = train(*LARGE_RATE)
    assert record["status"] == "diverged"
    assert "No space left" in record["forensics_problem"]
    assert "forensics" not in record


def test_the_command_tells_the_story(here: Here, train: Train) -> None:
    record = train(*LARGE_RATE)
    directory = str(record["directory"])
    told = here("explain", directory)
    assert (told.returncode, told.stderr) == (0, "")
    kept = _kept(record)
    for text in (f"step {kept.step}", f"layer {kept.origin.layer}", "per step", "clip.max_norm=", "confirmed", "bit"):
        assert text in " ".join(told.stdout.split()), text
    assert max(map(len, told.stdout.splitlines())) <= 80
    as_json = json.loads(here("explain", directory, "--json").stdout)
    assert as_json["first"]["layer"] == kept.origin.layer
    assert as_json["replay"]["confirmed"] is True
    assert as_json["growth"]["factor"] > 1
    assert as_json["batch"] == kept.batch
    assert len(as_json["past"]["layer_grad_norm"]) == kept.step + 1
    assert "nan" in as_json["past"]["loss"]
    assert here("explain", directory, "--help").stdout.startswith("gradstab explain")


def test_a_run_that_was_finite_has_nothing_to_explain(here: Here, train: Train) -> None:
    record = train("model.depth=2", "model.width=8", "steps=3")
    told = here("explain", str(record["directory"]))
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.count("\n") == 1
    assert "nothing to explain" in told.stdout
    assert "nothing" in json.loads(here("explain", str(record["directory"]), "--json").stdout)


def test_a_penalty_that_overflows_and_breaks_nothing_is_told(here: Here, train: Train) -> None:
    small = ("model.depth=2", "model.width=16", "optimizer=sgd", "optimizer.lr=1e-30", "steps=3")
    record = train(*small, "penalty=l2", "penalty.strength=1e30", "init.gain=2e4")
    penalty = read_records(record["directory"]).scalars["train/penalty"].values
    assert np.isinf(penalty).tolist() == [True, False, False]
    assert record["status"] == "completed"
    told = here("explain", str(record["directory"])).stdout
    assert "the penalty was not, first at step 0, but its gradient was" in told
    assert told.count("\n") == 1
    ordinary = train(*small, "penalty=l2")
    assert "so there is nothing to explain" in here("explain", str(ordinary["directory"])).stdout


def test_what_cannot_be_read_is_not_taken_for_finite(here: Here, train: Train) -> None:
    directory = Path(str(train("model.depth=2", "model.width=8", "steps=3")["directory"]))
    (directory / "run.json").write_text("{")
    told = here("explain", str(directory))
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == f"gradstab: {directory}/run.json: cannot be read (JSONDecodeError)\n"
    stands = here("status", str(directory))
    assert "run.json: cannot be read (JSONDecodeError)" in stands.stdout


@pytest.mark.parametrize("args", [(), ("",), ("a", "b"), ("--loud", "a"), ("missing",), ("a\0b",), ("--json",)])
def test_a_wrong_command_is_one_line(here: Here, args: tuple[str, ...]) -> None:
    told = here("explain", *args)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.count("\n") == 1
    assert told.stderr.startswith("gradstab: ")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "snapshot cut off": lambda folder: _cut(folder / "snapshot.json"),
    "snapshot empty": lambda folder: (folder / "snapshot.json").write_text(""),
    "snapshot a list": lambda folder: (folder / "snapshot.json").write_text("[1]"),
    "snapshot binary": lambda folder: (folder / "snapshot.json").write_bytes(b"\xff\xfe\0"),
    "snapshot a folder": lambda folder: _replace_by_folder(folder / "snapshot.json"),
    "snapshot nested": lambda folder: (folder / "snapshot.json").write_text("[" * 100_000),
    "another version": lambda folder: _edit(folder, version=2),
    "layers do not fit": lambda folder: _edit(folder, layers=["00_hidden"]),
    "no step": lambda folder: _edit(folder, step="seven"),
    "checkpoint elsewhere": lambda folder: _edit(folder, checkpoint="../../run.json"),
    "batch out of range": lambda folder: _edit(folder, batch=[10**9]),
    "batch negative": lambda folder: _edit(folder, batch=[-1]),
    "checkpoint cut off": lambda folder: _cut(folder / "before.pt"),
    "checkpoint missing": lambda folder: (folder / "before.pt").unlink(),
    "snapshot a pipe": lambda folder: _replace_by_pipe(folder / "snapshot.json"),
    "checkpoint a pipe": lambda folder: _replace_by_pipe(folder / "before.pt"),
    "no device": lambda folder: _edit(folder, device="toaster:1"),
    "checkpoint text": lambda folder: (folder / "before.pt").write_text("hello"),
    "checkpoint of another network": lambda folder: _other_model(folder / "before.pt"),
    "configuration missing": lambda folder: (folder.parent / "config.yaml").unlink(),
    "configuration damaged": lambda folder: (folder.parent / "config.yaml").write_text("model: [1"),
    "configuration of another run": lambda folder: _other_seed(folder.parent / "config.yaml"),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "snapshot.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _other_model(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["parts"]["model"] = {"strange": torch.zeros(3)}
    torch.save(content, path)


def _other_seed(path: Path) -> None:
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one run that the tests below take copies of."""
    return tmp_path_factory.mktemp("broken") / "run"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named_in_one_line(
    here: Here, train: Train, broken: Path, tmp_path: Path, damage: str
) -> None:
    if not broken.exists():
        record = train("experiment=exploding_init", "init.gain=1000", "model.width=16", "steps=2")
        shutil.copytree(record["directory"], broken)
    directory = tmp_path / "copy"
    shutil.copytree(broken, directory)
    assert here("explain", str(directory)).returncode == 0
    DAMAGES[damage](directory / "forensics")
    told = here("explain", str(directory))
    assert told.returncode == 1
    assert told.stderr.count("\n") == 1
    assert "Traceback" not in told.stderr
    assert "failed:" not in told.stderr


def test_from_elsewhere_nothing_is_downloaded_for_a_relative_root(
    here: Here, train: Train, mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mnist_root.parent)
    name = mnist_root.name
    record = train("data=mnist", f"data.root={name}", *SMALL, "steps=3", "optimizer=sgd", "optimizer.lr=1e25")
    assert record["status"] == "diverged"
    assert _explained(record).replay.exact
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    found = _explained(record)
    assert found.replay.problem == (
        f"data.root={name}: is relative to the current folder, and there is no mnist in {elsewhere / name}; "
        "nothing is downloaded to explain a run"
    )
    told = here("explain", str(record["directory"]), "--prove")
    assert told.returncode == 1
    assert "not possible: data.root=" in told.stdout
    assert not list(elsewhere.iterdir())


def test_a_step_that_does_not_break_again_is_said_so(here: Here, train: Train) -> None:
    record = train(*LARGE_RATE)
    path = record["directory"] / "forensics" / "before.pt"
    content = torch.load(path, weights_only=True)
    for value in content["parts"]["model"].values():
        value.fill_(0.01)
    torch.save(content, path)
    told = here("explain", str(record["directory"]))
    assert told.returncode == 1
    assert "not confirmed" in told.stdout
    assert "did not break again" in told.stderr


def test_the_report_tells_what_broke_first(here: Here, train: Train) -> None:
    record = train(*LARGE_RATE)
    directory = record["directory"]
    assert here("report", str(directory)).returncode == 0
    page = (directory / "report.html").read_text()
    assert "how it broke" in page
    assert f"layer {_kept(record).origin.layer}, on the way forward" in page
    (directory / "forensics" / "snapshot.json").write_text("{")
    told = here("report", str(directory))
    assert told.returncode == 0
    assert "no story of what broke" in told.stderr
    assert "how it broke" not in (directory / "report.html").read_text()


def test_a_resumed_run_keeps_what_broke_in_it(
    configure: Compose, train: Train, tamper: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(parts: Parts, step: int) -> None:
        if step == 40:
            _weight(parts, 4).fill_(1e37)

    tamper(change)
    common = (*NOISY, "checkpoint.every=10")
    whole = _kept(train(*common))
    directory = tmp_path / "resumed"
    config = configure("quiet=true", "device=cpu", "images_after=null", *common)
    with monkeypatch.context() as patch:
        # The process dies where the step would have been looked at.
        patch.setattr(keeper.Keeper, "after", _die_at(35))
        with pytest.raises(SystemExit):
            run(config, directory)
    record = run(config, directory, resume=True)
    assert record["resumed"][0]["step"] == 30
    kept = Snapshot.read(directory / "forensics")
    assert kept.past.step == list(range(20, 41))
    assert str(kept) == str(whole)
    found = explain(directory)
    assert isinstance(found, Explanation)
    assert found.replay.exact
    # The event file knows what was before the ring's time.
    assert found.past.step.tolist() == list(range(40))


def _die_at(step: int) -> Callable[..., None]:
    original = keeper.Keeper.after

    def after(self: keeper.Keeper, record: Any) -> None:
        if record.step == step:
            raise SystemExit
        original(self, record)

    return after


def test_a_run_that_goes_on_keeps_its_first_broken_step(tmp_path: Path, train: Train) -> None:
    record = train(*LARGE_RATE)
    folder = record["directory"] / "forensics"
    step = Snapshot.read(folder).step
    assert keeper._kept_before(folder, step + 1)
    assert not keeper._kept_before(folder, step)
    assert not keeper._kept_before(tmp_path / "none", 10)
