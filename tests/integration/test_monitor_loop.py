"""watch() on plain loops: the same record as `gradstab train`, whatever the loop does with its gradients."""

from __future__ import annotations

import itertools
import math
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradstab import reproducibility, watch
from gradstab.assembly import build
from gradstab.batching import Batches
from gradstab.errors import ConfigError, GradstabError
from gradstab.events import read_records
from gradstab.measure.afterwards import judge_records
from gradstab.measure.quantities import as_tensor
from gradstab.measure.verdict import Verdict
from gradstab.run_directory import read_run
from gradstab.runner import run
from tests.conftest import Compose


def mlp(*widths: int, phi: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """A plain MLP with an activation after every layer but the last."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        parts += [nn.Linear(fan_in, fan_out), phi()]
    return nn.Sequential(*parts[:-1])


def data(steps: int, *shape: int, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(*shape, generator=g), torch.randint(classes, (shape[0],), generator=g)) for _ in range(steps)]


def plain_body(model: nn.Module) -> nn.Module:
    """A network of gradstab's as if somebody else had written it: nothing tells where its layers are."""
    body = model.body
    assert isinstance(body, nn.Module)
    return body


@pytest.mark.parametrize("own", [True, False], ids=["as gradstab's", "as anybody's"])
@pytest.mark.parametrize(
    "overrides",
    [
        ("model.depth=4", "model.width=12", "act=tanh", "clip=norm", "clip.max_norm=0.05"),
        ("model.depth=3", "model.width=12", "act=relu", "model.norm=batch", "model.dropout=0.2"),
        ("model.depth=3", "model.width=10", "act=sigmoid", "constraint=weight_norm"),
        ("model=lenet5", "act=relu", "model.norm=layer"),
        ("model.depth=4", "model.width=9", "act=gelu", "model.residual=scaled"),
        ("model.depth=25", "model.width=12", "act=tanh", "init=critical", "optimizer.lr=0.02"),
        ("model.depth=6", "model.width=12", "act=tanh", "optimizer=nesterov", "optimizer.lr=0.3"),
        ("model.depth=12", "model.width=12", "act=elu", "model.norm=layer", "optimizer=rmsprop", "optimizer.lr=0.01"),
    ],
    ids=" ".join,
)
def test_a_plain_loop_records_what_gradstab_train_records(
    configure: Compose, tmp_path: Path, overrides: tuple[str, ...], own: bool
) -> None:
    if not own and "model.residual=scaled" in overrides:
        pytest.skip("only gradstab knows that the stream is its residual networks' h")
    config = configure(
        "quiet=true", "device=cpu", "steps=5", "batch_size=16", "eval_every=100", "measure=full", "measure.every=2",
        *overrides,
    )  # fmt: skip
    record = run(config, tmp_path / "train")
    parts = build(config)
    order = reproducibility.generator(config.seed, "order")
    stream = Batches(parts.data.train, config.batch, order)
    torch.manual_seed(reproducibility.stream_seed(config.seed, "dropout"))
    watched = parts.model if own else plain_body(parts.model)
    parts.model.train()
    with watch(
        watched, tmp_path / "watch", optimizer=parts.optimizer, every=2, chance_loss=record["chance_loss"]
    ) as monitor:
        for step, (x, y, _) in enumerate(stream):
            if step == 5:
                break
            parts.optimizer.zero_grad()
            loss = parts.loss(watched(x), y)
            loss.backward()
            monitor.step(loss)
            if parts.clip is not None:
                grads = parts.probe.gradients()
                parts.clip(grads, as_tensor(parts.probe.norms_of(grads)))
            parts.optimizer.step()
    ours, theirs = read_records(tmp_path / "train"), read_records(tmp_path / "watch")
    assert set(theirs.vectors) == set(ours.vectors)
    for name, series in ours.vectors.items():
        assert theirs.vectors[name].steps.tolist() == series.steps.tolist(), name
        assert theirs.vectors[name].values == pytest.approx(series.values, rel=1e-5, abs=1e-12), name
    for tag in ("train/loss", "train/learning_rate", "depth_factor", "depth_factor_r2", "global_grad_norm/pre_clip"):
        assert theirs.scalars[tag].values == pytest.approx(ours.scalars[tag].values, rel=1e-5), tag
    known = read_run(tmp_path / "watch")
    for key in ("steps", "depth_factor", "first_layer_grad_norm", "last_layer_grad_norm", "clipped_steps"):
        assert known[key] == pytest.approx(record[key], rel=1e-5), key
    assert known["status"] == record["status"] == "completed"
    verdict = read_run(tmp_path / "train")["verdict"]
    assert known["verdict"]["labels"] == verdict["labels"]
    chains = {"large_steps", "deep_steps"}
    assert [f["value"] for f in known["verdict"]["findings"] if f["rule"] in chains] == pytest.approx(
        [f["value"] for f in verdict["findings"] if f["rule"] in chains], rel=1e-4
    )


def train(
    model: nn.Module,
    directory: Path | None,
    batches_of: list[tuple[Tensor, Tensor]],
    *,
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    **options: Any,
) -> dict[str, Tensor]:
    """A plain loop with momentum; its end state."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    monitor = None if directory is None else watch(model, directory, optimizer=optimizer, **options)
    torch.manual_seed(7)
    for x, y in batches_of:
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        if monitor is not None:
            monitor.step(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    if monitor is not None:
        monitor.close()
    return model.state_dict()


class Mixed(nn.Module):
    """Everything that a hook could disturb: in-place activations, BatchNorm, dropout, attention, a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.shared = nn.Linear(8, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.norm = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = torch.stack([a, torch.tanh(self.shared(a))], 1)
        b = b + self.attention(b, b, b)[0]
        b, _ = self.rnn(self.shared(b))
        y: Tensor = self.head(self.norm(b[:, -1]))
        return y


def test_watching_changes_nothing_bit_for_bit(tmp_path: Path) -> None:
    bare = train(Mixed(), None, data(8, 5, 6))
    for every in (1, 3, None):
        watched = train(Mixed(), tmp_path / str(every), data(8, 5, 6), every=every)
        assert all(torch.equal(value, bare[key]) for key, value in watched.items())
    records = read_records(tmp_path / "1")
    assert [tag[3:] for tag in records.layers] == ["first.0", "shared", "attention", "rnn", "norm", "head"]
    assert np.isfinite(records.vectors["signal_grad_norm"].values).all()
    dead = records.vectors["dead_fraction"].values
    assert np.isfinite(dead[:, 0]).all()
    assert np.isnan(dead[:, 1:]).all()


def per_sample(model: nn.Module, layer: nn.Module, x: Tensor, y: Tensor) -> float:
    """√(mean ‖∂ℓ_i/∂h_i‖²) with a loss and a backward pass for one sample at a time, h being all calls' outputs."""
    squares = []
    for i in range(len(x)):
        outputs: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _m, _a, h, outputs=outputs: outputs.append(h))
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        handle.remove()
        squares.append(sum(g.pow(2).sum().item() for g in torch.autograd.grad(loss, outputs)))
    return math.sqrt(sum(squares) / len(squares))


class Recurrent(nn.Module):
    """One layer used three times, between two that are used once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.again, self.leave = nn.Linear(6, 7), nn.Linear(7, 7), nn.Linear(7, 3)
        self.phi = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = self.phi(self.enter(x))
        for _ in range(3):
            h = self.phi(self.again(h))
        y: Tensor = self.leave(h)
        return y


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("looks", [False, True])
def test_gradients_are_freed_when_the_loop_frees_them(tmp_path: Path, known: bool, looks: bool) -> None:
    """Held until the next step, they would take as much memory again as the weights."""
    model = mlp(8, 6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, tmp_path / "run", optimizer=optimizer if known else None) as monitor:
        for x, y in data(3, 16, 8):
            loss = F.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            if looks:
                monitor.look()
            monitor.step(loss)
            seen = [weakref.ref(p.grad) for p in model.parameters()]
            optimizer.step()
            optimizer.zero_grad()
            assert [grad() for grad in seen] == [None] * 4


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_signals_equal_gradients_taken_sample_by_sample(tmp_path: Path, reduction: str) -> None:
    model = Recurrent()
    (x, y) = data(1, 5, 6)[0]
    expected = [per_sample(model, layer, x, y) for layer in (model.enter, model.again, model.leave)]
    with watch(model, tmp_path / "run", every=1, reduction=reduction) as monitor:
        loss = F.cross_entropy(model(x), y, reduction=reduction)
        loss.backward()
        monitor.step(loss, lr=0.1)
    signals = read_records(tmp_path / "run").vectors["signal_grad_norm"].values
    assert signals[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_losses_sent_back_one_after_another_read_as_their_sum(tmp_path: Path) -> None:
    model = Recurrent()
    (x, y) = data(1, 5, 6)[0]
    outputs: list[Tensor] = []
    handle = model.enter.register_forward_hook(lambda _m, _a, h: outputs.append(h))
    logits = model(x)
    handle.remove()
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, y) + logits.square().mean(), outputs)
    with watch(model, tmp_path / "run") as monitor:
        logits = model(x)
        losses = F.cross_entropy(logits, y), logits.square().mean()
        losses[0].backward(retain_graph=True)
        losses[1].backward()
        monitor.step(sum(losses))
    signal = read_records(tmp_path / "run").vectors["signal_grad_norm"].values[0, 0]
    assert signal == pytest.approx(math.sqrt(5) * grad.norm().item(), rel=1e-5)


def test_unequal_parts_of_a_batch_that_go_back_together_count_all_samples(tmp_path: Path) -> None:
    model = Recurrent()
    (x, y) = data(1, 6, 6)[0]
    expected = [per_sample(model, layer, x, y) for layer in (model.enter, model.again, model.leave)]
    with watch(model, tmp_path / "run") as monitor:
        parts = zip(x.split([4, 2]), y.split([4, 2]), strict=True)
        loss = sum((F.cross_entropy(model(a), b, reduction="sum") for a, b in parts), torch.zeros(())) / 6
        loss.backward()
        monitor.step(loss)
    signals = read_records(tmp_path / "run").vectors["signal_grad_norm"].values
    assert signals[0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("network", [Recurrent, lambda: nn.Sequential(nn.Conv1d(2, 4, 2), nn.ReLU(inplace=True),
                                                                      nn.Flatten(), nn.Linear(8, 3))])  # fmt: skip
def test_micro_batches_read_as_one_batch(tmp_path: Path, network: Callable[[], nn.Module]) -> None:
    shape = (6, 6) if network is Recurrent else (6, 2, 3)
    x, y = data(1, *shape)[0]
    found = []
    for parts in (1, 3):
        torch.manual_seed(0)
        model = network()
        with watch(model, tmp_path / str(parts), every=1) as monitor:
            total = 0.0
            for own_x, own_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
                with torch.no_grad():
                    model(own_x[:1])
                loss = F.cross_entropy(model(own_x), own_y) / parts
                loss.backward()
                total += loss.item()
            monitor.step(total)
        found.append(read_records(tmp_path / str(parts)))
    whole, chunked = found
    assert chunked.scalars["train/loss"].values == pytest.approx(whole.scalars["train/loss"].values, rel=1e-5)
    assert set(chunked.vectors) == set(whole.vectors) > {"signal_grad_norm", "dead_fraction", "activation_std"}
    for name in set(whole.vectors) - {"correlation"}:
        assert chunked.vectors[name].values == pytest.approx(whole.vectors[name].values, rel=1e-5), name


def test_shared_weights_count_in_each_layer_and_once_in_the_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False))
    model[2].weight = model[0].weight
    x, y = torch.randint(9, (5,)), torch.randint(9, (5,))
    with watch(model, tmp_path / "run") as monitor:
        loss = F.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        loss.backward()
        monitor.step(loss)
    records = read_records(tmp_path / "run")
    tied, own = grads[0].norm().item(), grads[1].norm().item()
    assert records.vectors["grad_norm"].values[0].tolist() == pytest.approx([tied, own, tied], rel=1e-5)
    whole = math.sqrt(sum(g.pow(2).sum().item() for g in grads))
    assert records.scalars["global_grad_norm/pre_clip"].values[0] == pytest.approx(whole, rel=1e-5)


def test_frozen_and_unused_layers_are_no_false_alarm(tmp_path: Path) -> None:
    model = mlp(6, 8, 8, 8, 8, 3)
    for parameter in (*model[0].parameters(), *model[4].parameters()):
        parameter.requires_grad_(False)
    model.add_module("unused", nn.Linear(5, 5))
    model[6].register_forward_hook(lambda *_: None)
    body = nn.Sequential(*list(model)[:-1])
    model.forward = body.forward  # type: ignore[method-assign]
    train(model, tmp_path / "run", data(6, 16, 6), every=1)
    records, known = read_records(tmp_path / "run"), read_run(tmp_path / "run")
    grads, signals = records.vectors["grad_norm"].values, records.vectors["signal_grad_norm"].values
    at = {tag[3:]: i for i, tag in enumerate(records.layers)}
    assert (grads[:, [at["0"], at["4"], at["unused"]]] == 0).all()
    assert (grads[:, [at["2"], at["6"], at["8"]]] > 0).all()
    # The gradient passes through a frozen layer that stands above a trainable one, and not down to the first.
    assert (signals[:, at["4"]] > 0).all()
    assert np.isnan(signals[:, [at["0"], at["unused"]]]).all()
    assert known["verdict"]["labels"] == ["healthy"]


def test_optimizers_that_take_turns_make_one_step_together(tmp_path: Path) -> None:
    model = mlp(6, 8, 3)
    first, last = torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters(), lr=0.01)
    expected = []
    with watch(model, tmp_path / "run", optimizer=[first, last], every=1) as monitor:
        for x, y in data(3, 5, 6):
            norms = []
            for layer, optimizer in ((model[0], first), (model[2], last)):
                model.zero_grad()
                loss = F.cross_entropy(model(x), y)
                norms.append(torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm().item())
                loss.backward()
                monitor.step(loss, optimizer=optimizer)
                torch.nn.utils.clip_grad_norm_(layer.parameters(), 0.01)
                optimizer.step()
            expected.append(norms)
    records = read_records(tmp_path / "run")
    assert records.vectors["grad_norm"].values.tolist() == [pytest.approx(norms, rel=1e-5) for norms in expected]
    assert records.vectors["signal_grad_norm"].values.shape == (3, 2)
    assert records.scalars["global_grad_norm/post_clip"].values == pytest.approx([0.01 * math.sqrt(2)] * 3, rel=1e-3)
    assert (records.vectors["update_ratio"].values > 0).all()
    assert read_run(tmp_path / "run")["steps"] == 3


@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled by the user"])
@pytest.mark.parametrize("known", [False, True], ids=["", "optimizer given"])
def test_norms_under_a_grad_scaler_are_unscaled(tmp_path: Path, unscale: bool, known: bool) -> None:
    batch = data(5, 4, 6)
    train(mlp(6, 8, 3), tmp_path / "plain", batch, every=1)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    options: dict[str, Any] = {"optimizer": optimizer} if known else {}
    with watch(model, tmp_path / "run", scaler=scaler, every=1, **options) as monitor:
        for x, y in batch:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
            monitor.step(loss, lr=0.05)
            scaler.unscale_(optimizer) if not unscale else None
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
    assert scaler.get_scale() > 1024
    plain, found = read_records(tmp_path / "plain"), read_records(tmp_path / "run")
    for name in ("grad_norm", "signal_grad_norm", "update_ratio", *(["clip_scale"] if known else [])):
        assert found.vectors[name].values == pytest.approx(plain.vectors[name].values, rel=1e-4), name


def test_a_scaler_may_have_unscaled_some_optimizers_gradients_and_not_others(tmp_path: Path) -> None:
    model = mlp(6, 8, 3)
    optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.05) for i in (0, 2)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    (x, y) = data(1, 4, 6)[0]
    with watch(model, tmp_path / "run", optimizer=optimizers, scaler=scaler) as monitor:
        loss = F.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, [model[0].weight, model[2].weight], retain_graph=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizers[1])
        monitor.step(loss)
    found = read_records(tmp_path / "run").vectors["grad_norm"].values[0]
    assert found.tolist() == pytest.approx([g.norm().item() for g in grads], rel=1e-5)


def test_a_step_that_the_scaler_skips_is_recorded_and_ends_nothing(tmp_path: Path) -> None:
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with watch(model, tmp_path / "run", scaler=scaler, optimizer=optimizer, every=1) as monitor:
        for step, (x, y) in enumerate(data(4, 4, 6)):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            (scaler.scale(loss) * (1e38 if step == 1 else 1)).backward()
            monitor.step(loss)
            scaler.step(optimizer)
            scaler.update(new_scale=16.0)
    records, known = read_records(tmp_path / "run"), read_run(tmp_path / "run")
    skipped = records.scalars["amp/skipped"].values
    broken = ~np.isfinite(records.scalars["global_grad_norm/pre_clip"].values)
    assert skipped.tolist() == broken.astype(float).tolist()
    assert 0 < known["skipped_steps"] == skipped.sum() < 4
    assert (known["status"], known["steps"]) == ("completed", 4)
    assert "non_finite" not in known["verdict"]["labels"]


def test_missing_sparse_and_huge_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.tensor([[1, 1, 2], [2, 3, 3]]), torch.tensor([0, 2])
    with watch(model, tmp_path / "run", every=None) as monitor:
        loss = F.cross_entropy(model(x), y) * 1e25
        loss.backward()
        monitor.step(loss)
    dense = [model[0].weight.grad.to_dense(), model[2].weight.grad]  # type: ignore[operator]
    expected = [g.double().norm().item() for g in dense]
    assert expected[0] > 1e22
    grads = read_records(tmp_path / "run").vectors["grad_norm"].values[0]
    assert grads.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("before", [True, False], ids=["compiled first", "watched first"])
def test_compiled_networks_have_norms_and_say_what_they_lack(tmp_path: Path, before: bool) -> None:
    batch = data(3, 4, 6)
    train(mlp(6, 8, 3), tmp_path / "plain", batch, every=1)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    compiled = torch.compile(model, backend="eager") if before else model
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        monitor = watch(compiled, tmp_path / "run", optimizer=optimizer, every=1)
        forward = torch.compile(model, backend="eager") if not before else compiled
        for x, y in batch:
            optimizer.zero_grad()
            loss = F.cross_entropy(forward(x), y)
            loss.backward()
            monitor.step(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        monitor.close()
    ours = [str(w.message) for w in said if "watch:" in str(w.message)]
    assert len(ours) == 1
    assert "only gradient norms" in ours[0]
    assert monitor.notes == [ours[0].removeprefix("watch: ")] == read_run(tmp_path / "run")["notes"]
    plain, found = read_records(tmp_path / "plain"), read_records(tmp_path / "run")
    assert "signal_grad_norm" not in found.vectors
    for name in ("grad_norm", "update_ratio", "weight_norm", "clip_scale"):
        assert found.vectors[name].values == pytest.approx(plain.vectors[name].values, rel=1e-5), name


def test_the_verdict_is_the_same_live_and_afterwards(tmp_path: Path) -> None:
    verdicts = {}
    for name, phi in (("tanh", nn.Tanh), ("sigmoid", nn.Sigmoid)):
        model = mlp(6, *[16] * 12, 3, phi=phi)
        with watch(model, tmp_path / name, every=1) as monitor:
            for x, y in data(3, 16, 6):
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                monitor.step(loss)
                model.zero_grad()
            verdicts[name] = monitor.verdict()
        records, known = read_records(tmp_path / name), read_run(tmp_path / name)
        assert Verdict.from_dict(known["verdict"]) == verdicts[name]
        assert judge_records(records, known).labels == Verdict.from_dict(known["verdict"]).labels
        assert records.scalars["depth_factor"].values[0] == pytest.approx(known["depth_factor"], rel=0.2)
    assert "vanishing" in verdicts["sigmoid"].labels


def test_an_exception_closes_the_record(tmp_path: Path) -> None:
    model = mlp(6, 8, 3)
    monitor = watch(model, tmp_path / "run")
    loss = F.cross_entropy(model(data(1, 4, 6)[0][0]), torch.zeros(4, dtype=torch.long))
    loss.backward()

    def loop() -> None:
        with monitor:
            monitor.step(loss)
            raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError):
        loop()
    known = read_run(tmp_path / "run")
    assert (known["status"], known["reason"], known["steps"]) == (
        "failed", "ZeroDivisionError: division by zero", 1,
    )  # fmt: skip
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(GradstabError, match="closed"):
        monitor.step(loss)


@pytest.mark.parametrize("every", [1, 2, 50])
def test_compiling_after_watching_still_compiles(tmp_path: Path, every: int) -> None:
    """A graph is made with hooks in place and one without, none for each measured step, and all steps run in one."""
    made, ran = 0, 0

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        nonlocal made
        made += 1

        def run(*args: object) -> object:
            nonlocal ran
            ran += 1
            return graph(*args)

        return run

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = watch(model, tmp_path / "run", optimizer=optimizer, every=every)
    forward = torch.compile(model, backend=backend, fullgraph=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(24):
            optimizer.zero_grad()
            loss = forward(torch.randn(4, 5)).square().mean()
            loss.backward()
            monitor.step(loss)
            optimizer.step()
    assert (made, ran) == (2, 24)
    assert [str(one.message).startswith("watch: the network is compiled") for one in told] == [True]
    monitor.close()


def test_what_borrows_an_optimizers_hooks_is_that_optimizer(tmp_path: Path) -> None:
    fabric = pytest.importorskip("lightning.fabric")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    fabric = fabric.Fabric(accelerator="cpu")
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with watch(net, tmp_path / "run", optimizer=optimizer, every=1) as monitor:
        for _ in range(3):
            loss = model(torch.randn(5, 6)).square().mean()
            optimizer.zero_grad()
            fabric.backward(loss)
            monitor.step(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1e-3)
            optimizer.step()
    scalars = read_records(tmp_path / "run").scalars
    assert (scalars["global_grad_norm/pre_clip"].values > 0.01).all()
    np.testing.assert_allclose(scalars["global_grad_norm/post_clip"].values, 1e-3, rtol=1e-3)


@pytest.mark.parametrize("empty", [lambda: nn.Embedding(0, 3), lambda: nn.Linear(5, 0)])
def test_a_matrix_without_entries_stands_in_nobodys_way(tmp_path: Path, empty: Callable[[], nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on initializing nothing
        model = nn.ModuleList([empty(), nn.Linear(5, 3)])
    monitor = watch(model, tmp_path / "run")
    loss = model[1](torch.randn(6, 5)).square().mean()
    loss.backward()
    monitor.step(loss)
    monitor.close()
    assert read_records(tmp_path / "run").scalars["train/loss"].values.tolist() == [pytest.approx(loss.item())]


def test_norms_alone_are_said_to_be_all_and_follow_a_change_of_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(400, 300)
    monitor = watch(model, tmp_path / "run", every=None)
    assert monitor.notes[0].startswith("every=None: gradient norms alone were measured")
    model.bfloat16()
    loss = model(1e2 * torch.randn(64, 400).bfloat16()).float().square().mean()
    loss.backward()
    assert model.weight.grad is not None
    expected = model.weight.grad.double().norm().item()
    monitor.step(loss)
    monitor.close()
    (found,) = read_records(tmp_path / "run").vectors["grad_norm"].values[0]
    assert found == pytest.approx(expected, rel=1e-5)


def test_frozen_layers_may_come_and_go(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    frozen = [{0}, {0}, {0, 2}, {0, 2}, set(), {4}, {4}]
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    expected = []
    with watch(model, tmp_path / "run", every=None) as monitor:
        for held in frozen:
            for i in (0, 2, 4):
                model[i].requires_grad_(i not in held)
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            monitor.step(loss)
            grads = [model[i].weight.grad for i in (0, 2, 4)]
            expected.append([0.0 if grad is None else grad.norm().item() for grad in grads])  # type: ignore[union-attr]
    np.testing.assert_allclose(read_records(tmp_path / "run").vectors["grad_norm"].values, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [nn.Hardsigmoid, nn.ReLU6])
def test_bounded_activations_of_torch_saturate(tmp_path: Path, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 50), kind(), nn.Linear(50, 3))
    nn.init.normal_(model[0].weight, std=20.0)  # type: ignore[arg-type]
    x = torch.randn(16, 4)
    with watch(model, tmp_path / "run", every=1) as monitor:
        loss = model(x).square().mean()
        loss.backward()
        monitor.step(loss)
    h = model[0](x)
    high = {nn.Hardsigmoid: (-3.0, 3.0), nn.ReLU6: (0.0, 6.0)}[kind]
    flat = ((h <= high[0]) | (h >= high[1])).double().mean().item()
    found = read_records(tmp_path / "run").vectors["saturated_fraction"].values[0, 0]
    assert found == pytest.approx(flat, abs=1e-6)
    assert flat > 0.9


class Halved(nn.Module):
    """A gate, whose output is half as wide: its slope is no layer's own."""

    def forward(self, h: Tensor) -> Tensor:
        return F.glu(h)


def test_an_own_activation_of_another_shape_is_refused_in_a_note(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), Halved(), nn.Linear(3, 2))
    with watch(model, tmp_path / "run", activations=[Halved]) as monitor:
        loss = model(torch.ones(5, 4)).square().mean()
        loss.backward()
        with pytest.warns(UserWarning, match="Halved: has no slope that can be asked for"):
            monitor.step(loss)
    assert "dead_fraction" not in read_records(tmp_path / "run").vectors


def test_a_loss_without_a_number_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    monitor = watch(model, tmp_path / "run")
    model(torch.ones(3, 2)).mean().backward()
    with pytest.raises(ConfigError, match="loss: is on the meta device"):
        monitor.step(torch.tensor(1.0, device="meta"))
    monitor.step(1.0)
    monitor.close()
