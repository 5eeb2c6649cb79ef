"""watch() while a loop changes its network, its optimizers or whose turn it is; and layers that show nothing."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gradstab import watch
from gradstab.errors import ConfigError
from gradstab.events import read_records
from gradstab.measure.afterwards import judge_records
from gradstab.monitor import Monitor
from gradstab.monitor.turns import LONGEST_WAIT
from gradstab.run_directory import read_run
from tests.integration.test_monitor_misuse import mlp


def batch(step: int, samples: int, width: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(samples, width, generator=g), torch.randint(classes, (samples,), generator=g)


def whole_norm(model: nn.Module) -> float:
    return math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters() if p.grad is not None))


class Mixture(nn.Module):
    """Four experts, each of which sees the samples that choose it: often none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.out = nn.Linear(8, 4), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.gate(x).softmax(-1).max(-1)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            own = (chosen == i).nonzero().squeeze(1)
            y = y.index_add(0, own, expert(x[own]) * share[own, None])
        result: Tensor = self.out(x + y)
        return result


class Extractor(nn.Module):
    """A frozen encoder, which turns batches with padding into nested tensors, below a layer that learns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2).requires_grad_(False)
        self.head = nn.Linear(16, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, None, :].repeat(1, 5, 2)
        padding = torch.zeros(len(x), 5, dtype=torch.bool)
        padding[0, 3:] = True
        result: Tensor = self.head(self.encoder(rows, src_key_padding_mask=padding)[:, 0])
        return result


class Noise(nn.Module):
    """A weight that is another one each time it is asked for."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.01 * torch.randn_like(weight)


def noisy() -> nn.Module:
    model = mlp(8, 12, 3)
    parametrize.register_parametrization(model[0], "weight", Noise())
    return model


class Observed(nn.Module):
    """A parametrization that remembers the smallest weight it has met, and trains with it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("smallest", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.smallest = 0.9 * self.smallest + 0.1 * weight.detach().min()
        return weight * (1 + self.smallest)


class Clipped(nn.Module):
    """An activation whose bound follows what goes in, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bound", torch.ones(()))

    def forward(self, h: Tensor) -> Tensor:
        self.bound.mul_(0.9).add_(0.1 * h.detach().abs().max())  # type: ignore[operator]
        return torch.minimum(h, self.bound.clone())  # type: ignore[arg-type]


def remembering() -> nn.Module:
    model = mlp(8, 6, 3)
    model[1] = Clipped()
    parametrize.register_parametrization(model[0], "weight", Observed())
    return model


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("make", [Mixture, Extractor, noisy, remembering])
def test_networks_train_as_if_nobody_watched(tmp_path: Path, make: Any) -> None:
    ends = []
    for watched in (False, True):
        model = make()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        given = {"optimizer": optimizer, "activations": [Clipped]}
        monitor = watch(model, tmp_path / "run", **given, every=1) if watched else None  # type: ignore[arg-type]
        torch.manual_seed(1)
        for step in range(4):
            x, y = batch(step, 4, 8)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if monitor is not None:
                monitor.step(loss)
            optimizer.step()
        if monitor is not None:
            monitor.close()
        ends.append(model.state_dict())
    assert all(torch.equal(bare, ends[1][name]) for name, bare in ends[0].items())
    records = read_records(tmp_path / "run")
    top = next(i for i, name in enumerate(records.layers) if name.partition("_")[2] in ("out", "head", "2"))
    assert np.isfinite(records.vectors["signal_grad_norm"].values[:, top]).all()


def test_a_whole_batch_of_nothing_is_no_other_network(tmp_path: Path) -> None:
    model = mlp(4, 6, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watch(model, tmp_path / "run", every=1) as monitor:
            for samples in (0, 5):
                x, y = batch(0, samples, 4)
                loss = F.cross_entropy(model(x), y, reduction="sum")
                model.zero_grad()
                loss.backward()
                model[0].bias.grad += 1
                monitor.step(loss)
    assert read_records(tmp_path / "run").vectors["signal_grad_norm"].steps.tolist() == [1]


@pytest.mark.parametrize("every", [1, 2])
def test_turns_of_unequal_number_are_steps_of_their_own(tmp_path: Path, every: int) -> None:
    critic, maker = mlp(2, 16, 1), mlp(4, 16, 2)
    optimizers = [torch.optim.SGD(critic.parameters(), 0.01), torch.optim.SGD(maker.parameters(), 0.01)]
    own: list[list[Tensor]] = []
    critic[0].register_forward_hook(lambda _m, _a, h: h.register_hook(own[-1].append) and None)
    both = nn.ModuleDict({"critic": critic, "maker": maker})
    with watch(both, tmp_path / "run", optimizer=optimizers, every=every) as monitor:
        for step in range(12):
            own.append([])
            z = batch(step, 8, 4)[0]
            optimizers[0].zero_grad()
            loss = (critic(maker(z).detach()) - 1).square().mean()
            loss.backward()
            monitor.step(loss, optimizer=optimizers[0])
            optimizers[0].step()
            if step % 3 == 2:
                optimizers[1].zero_grad()
                loss = critic(maker(z)).square().mean()
                loss.backward()
                monitor.step(loss, optimizer=optimizers[1])
                optimizers[1].step()
    records = read_records(tmp_path / "run").vectors["signal_grad_norm"]
    layer = next(i for i, name in enumerate(monitor.layers) if name.endswith("critic.0"))
    # Once one is due, all steps are measured up to the maker's turn, which every third step has.
    measured = list(range(12)) if every == 1 else [0, 1, 2, 4, 5, 6, 7, 8, 10, 11]
    assert records.steps.tolist() == measured
    # The parts of a round are read as one batch.
    expected = [math.sqrt(8 * len(parts)) * torch.stack([g.norm() for g in parts]).norm().item() for parts in own]
    assert records.values[:, layer].tolist() == pytest.approx([expected[step] for step in measured], rel=1e-5)


def test_measured_steps_wait_for_a_turn_that_would_always_miss_them(tmp_path: Path) -> None:
    critic, maker = mlp(2, 4, 1), mlp(4, 4, 2)
    optimizers = [torch.optim.SGD(critic.parameters(), 0.01), torch.optim.SGD(maker.parameters(), 0.01)]
    both = nn.ModuleDict({"critic": critic, "maker": maker})
    with watch(both, tmp_path / "run", optimizer=optimizers, every=10) as monitor:
        for step in range(30):
            z = batch(step, 8, 4)[0]
            for turn in (0, 1) if step % 5 == 4 else (0,):
                both.zero_grad()
                loss = critic(maker(z)).square().mean()
                loss.backward()
                monitor.step(loss, optimizer=optimizers[turn])
                optimizers[turn].step()
    records = read_records(tmp_path / "run").vectors
    assert records["signal_grad_norm"].steps.tolist() == [*range(5), *range(10, 15), *range(20, 25)]
    place = next(i for i, name in enumerate(monitor.layers) if name.endswith("maker.0"))
    moved = records["update_ratio"].values[:, place] > 0
    assert records["signal_grad_norm"].steps[moved].tolist() == [4, 14, 24]
    assert not any("had no turn" in note for note in monitor.notes)


def test_a_turn_that_never_comes_costs_no_memory(tmp_path: Path) -> None:
    critic, maker = mlp(2, 4, 1), mlp(4, 4, 2)
    optimizers = [torch.optim.SGD(critic.parameters(), 0.01), torch.optim.SGD(maker.parameters(), 0.01)]
    both = nn.ModuleDict({"critic": critic, "maker": maker})
    calls = 0

    def count(_module: nn.Module, _args: object) -> None:
        nonlocal calls
        calls += len(critic[0]._forward_hooks)

    critic.register_forward_pre_hook(count)

    def loop() -> None:
        with watch(both, tmp_path / "run", optimizer=optimizers, every=10) as monitor:
            for step in range(40):
                optimizers[0].zero_grad()
                loss = critic(batch(step, 8, 2)[0]).square().mean()
                loss.backward()
                monitor.step(loss, optimizer=optimizers[0])
                optimizers[0].step()
                assert len(monitor.signals.passes) <= 2

    with pytest.warns(UserWarning, match=f"had no turn among {LONGEST_WAIT} measured steps"):
        loop()
    # Hooks are in place for the steps measured in waiting, for those measured later, and for the ones after them, which
    # might still belong to them.
    assert calls == LONGEST_WAIT + 1 + 1 + 2


@pytest.mark.filterwarnings("ignore:.*had no turn")
def test_an_optimizer_that_was_waited_for_in_vain_is_waited_for_again_after_a_turn(tmp_path: Path) -> None:
    model = mlp(4, 4, 1)
    optimizers = [torch.optim.SGD(model[i].parameters(), 0.01) for i in (0, 2)]
    with watch(model, tmp_path / "run", optimizer=optimizers, every=30) as monitor:
        for step in range(36):
            for turn in (0, 1) if step in (24, 33) else (0,):
                model.zero_grad()
                loss = model(batch(step, 8, 4)[0]).square().mean()
                loss.backward()
                monitor.step(loss, optimizer=optimizers[turn])
                optimizers[turn].step()
    measured = read_records(tmp_path / "run").vectors["signal_grad_norm"].steps.tolist()
    assert measured == [*range(LONGEST_WAIT + 1), 30, 31, 32, 33]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Monitor, steps: range) -> None:
    for step in steps:
        x, y = batch(step, 32, 16)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        monitor.step(loss)
        optimizer.step()


@pytest.mark.parametrize("frozen", [False, True])
def test_layers_that_are_unfrozen_join_the_line_over_depth(tmp_path: Path, frozen: bool) -> None:
    model = mlp(*[16] * 17, 3)
    for layer in model[:-1]:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain=0.45)
            nn.init.zeros_(layer.bias)
    model[:-1].requires_grad_(not frozen)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with watch(model, tmp_path / "run", optimizer=optimizer, every=10) as monitor:
        train(model, optimizer, monitor, range(5))
        model.requires_grad_(True)
        train(model, optimizer, monitor, range(5, 60))
    verdict, record = monitor.verdict(), read_run(tmp_path / "run")
    assert "vanishing" in verdict.labels
    assert len(record["depth_layers"]) == record["hidden_layers"] == 16
    assert record["depth_factor"] == pytest.approx(0.45, rel=0.05)
    assert judge_records(read_records(tmp_path / "run"), record).labels == verdict.labels
    assert record["notes"] == []


def test_weights_filled_after_watching_began_are_seen_to_be_copies(tmp_path: Path) -> None:
    model = mlp(16, 32, 32, 3)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with watch(model, tmp_path / "run", optimizer=optimizer) as monitor:
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.05)
        train(model, optimizer, monitor, range(60))
    verdict, record = monitor.verdict(), read_run(tmp_path / "run")
    assert "identical_units" in [finding.rule for finding in verdict.findings]
    assert judge_records(read_records(tmp_path / "run"), record) == verdict


class Skipping(nn.Module):
    """A chain of linear layers, one of which a skip path leads past."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.phi = nn.ModuleList(nn.Tanh() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.phi[0](self.first(x))
        y: torch.Tensor = self.last(x + self.phi[1](self.second(x)))
        return y


@pytest.mark.parametrize(
    ("make", "optimizer", "scale"),
    [
        (lambda: mlp(16, 8, 8, 8, 3), torch.optim.Adam, 3**1.5),
        (lambda: mlp(16, 8, 8, 8, 3), torch.optim.LBFGS, None),
        (lambda: nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)), torch.optim.SGD, None),
        (lambda: nn.Sequential(nn.Conv1d(16, 8, 1), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)), torch.optim.Adam, None),
        (Skipping, torch.optim.Adam, None),
    ],
)
def test_what_steps_mean_is_known_of_plain_chains_alone(
    tmp_path: Path, make: Any, optimizer: Any, scale: float | None
) -> None:
    model = make()
    opt = optimizer(model.parameters(), 0.01)
    with watch(model, tmp_path / "run", optimizer=opt) as monitor:
        x, y = batch(0, 32, 16)
        x = x.unsqueeze(2) if isinstance(next(model.children()), nn.Conv1d) else x
        F.cross_entropy(model(x), y).backward()
        monitor.step(1.0)
    assert read_run(tmp_path / "run")["theory"].get("step_scale") == (None if scale is None else pytest.approx(scale))


def test_parameters_that_an_optimizer_takes_up_later_are_looked_at(tmp_path: Path) -> None:
    model = mlp(4, 6, 3)
    optimizer = torch.optim.SGD(model[2].parameters(), 0.1)
    own = []
    with watch(model, tmp_path / "run", every=1) as monitor:
        for step in range(3):
            if step == 2:
                optimizer.add_param_group({"params": model[0].parameters()})
            x, y = batch(step, 5, 4)
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            monitor.step(loss, optimizer=optimizer)
            own.append([layer.weight.grad.norm().item() for layer in (model[0], model[2])])
            optimizer.step()
    norms = read_records(tmp_path / "run").vectors["grad_norm"].values
    assert norms.tolist() == [pytest.approx([0 if step < 2 else own[step][0], own[step][1]]) for step in range(3)]


def test_blocks_that_take_turns_in_one_optimizer_are_looked_at_in_turn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    blocks = [list(layer.parameters()) for layer in model]
    optimizer = torch.optim.SGD(blocks[2], lr=0.1)
    with watch(model, tmp_path / "run", optimizer=optimizer, every=2) as monitor:
        for step in range(6):
            block = optimizer.param_groups[0]["params"] = blocks[2 if step < 3 else 0]
            for own in blocks:
                for parameter in own:
                    parameter.requires_grad_(own is block)
            x, y = batch(step, 16, 8)
            model.zero_grad()
            before = monitor._followed.backwards
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            assert step in (3, 4) or monitor._followed.backwards > before  # It looks again at the next measured step.
            monitor.step(loss)
            torch.nn.utils.clip_grad_norm_(block, 0.01)
            optimizer.step()
    clipped = read_records(tmp_path / "run").vectors["grad_norm_post_clip"].values
    weights = np.array([[0, 0, 1]] * 3 + [[1, 0, 0]] * 3)
    assert ((clipped > 0) == weights).all()
    assert (clipped.max(1) < 0.0101).all()


def test_clipping_that_leaves_no_trace_is_seen_all_the_same(tmp_path: Path) -> None:
    model = mlp(4, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    own = []
    with watch(model, tmp_path / "run", optimizer=optimizer) as monitor:
        for step in range(3):
            x, y = batch(step, 5, 4)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            monitor.step(loss)
            for p in model.parameters():
                assert p.grad is not None
                p.grad.data.clamp_(-0.01, 0.01)
            own.append(whole_norm(model))
            optimizer.step()
    after = read_records(tmp_path / "run").scalars["global_grad_norm/post_clip"].values
    assert after.tolist() == pytest.approx(own, rel=1e-6)
    assert read_run(tmp_path / "run")["clipped_steps"] == 3


@pytest.mark.parametrize("told", ["by look", "at once", "of one", "in turns"])
def test_biases_clipped_by_one_of_two_optimizers_count_as_its_own(tmp_path: Path, told: str) -> None:
    model = mlp(4, 8, 8, 3)
    parameters = list(model.parameters())
    low, high = (torch.optim.SGD(part, 0.1) for part in (parameters[:3], parameters[3:]))
    biases = [p for p in parameters[3:] if p.ndim == 1]
    before, after = [], []
    with watch(model, tmp_path / "run", optimizer={"at once": [low, high], "of one": high}.get(told)) as monitor:
        for step in range(3):
            x, y = batch(step, 5, 4)
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            before.append(whole_norm(model))
            if told in ("by look", "in turns"):
                if told == "by look":
                    monitor.look()
                    nn.utils.clip_grad_norm_(biases, 0.01)
                monitor.step(loss, optimizer=low)
                monitor.step(loss, optimizer=high)
            else:
                monitor.step(loss)
            if told != "by look":
                nn.utils.clip_grad_norm_(biases, 0.01)
            after.append(whole_norm(model))
            low.step()
            high.step()
    scalars = read_records(tmp_path / "run").scalars
    assert scalars["global_grad_norm/pre_clip"].values.tolist() == pytest.approx(before, rel=1e-6)
    assert scalars["global_grad_norm/post_clip"].values.tolist() == pytest.approx(after, rel=1e-6)
    assert all(later < 0.999 * earlier for earlier, later in zip(before, after, strict=True))


@pytest.mark.parametrize("how", ["step", "follow", "neither"])
def test_another_optimizer_takes_over(tmp_path: Path, how: str) -> None:
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    own = []
    with warnings.catch_warnings(record=True) as said, watch(model, tmp_path / "run", optimizer=optimizer) as monitor:
        warnings.simplefilter("always")
        for step in range(8):
            if step == 3:
                optimizer = torch.optim.SGD(model.parameters(), 0.001)
                if how == "follow":
                    monitor.follow(optimizer)
            x, y = batch(step, 5, 6)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if how == "step":
                monitor.step(loss, optimizer=optimizer)
            else:
                monitor.step(loss)
            own.append((loss.item(), whole_norm(model)))
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    scalars = read_records(tmp_path / "run").scalars
    recorded = zip(scalars["train/loss"].values, scalars["global_grad_norm/pre_clip"].values, strict=True)
    assert np.array(list(recorded)) == pytest.approx(np.array(own), rel=1e-5)
    if how == "neither":
        assert [str(warning.message) for warning in said] == [f"watch: {monitor.notes[0]}"]
        assert "follow(optimizer)" in monitor.notes[0]
    else:
        assert scalars["train/learning_rate"].values.tolist() == pytest.approx([0.1] * 3 + [0.001] * 5)
        assert scalars["global_grad_norm/post_clip"].values.tolist() == pytest.approx([0.1] * 8, rel=1e-4)
        assert not said


@pytest.mark.parametrize("scaled", [False, True])
def test_three_idle_steps_of_an_optimizer_are_told_of_unless_a_scaler_may_skip_them(
    tmp_path: Path, scaled: bool
) -> None:
    model = mlp(6, 8, 3)
    known, other = (torch.optim.SGD(model.parameters(), 0.1) for _ in range(2))
    # A scaler may have skipped the optimizer's steps.
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0) if scaled else None
    with (
        warnings.catch_warnings(record=True) as said,
        watch(model, tmp_path / "run", optimizer=known, scaler=scaler) as monitor,
    ):
        warnings.simplefilter("always")
        counts = []
        for step in range(6):
            x, y = batch(step, 5, 6)
            other.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            # Here the step before is over.
            monitor.step(loss)
            counts.append(len(said))
            other.step()
    assert counts == ([0] * 6 if scaled else [0, 0, 0, 1, 1, 1])


def test_parameters_that_came_later_are_told_of_once(tmp_path: Path) -> None:
    model = mlp(6, 8, 3)
    with warnings.catch_warnings(record=True) as said, watch(model, tmp_path / "run", every=2) as monitor:
        warnings.simplefilter("always")
        for step in range(8):
            if step == 3:
                model[2] = nn.Linear(8, 3)
            x, y = batch(step, 5, 6)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            monitor.step(loss)
    assert len(said) == 1
    assert "(2 new, 2 gone)" in str(said[0].message)


class Wrapping(torch.optim.Optimizer):
    """An optimizer around another, as accelerate's: it has none of torch's own attributes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class Half(torch.optim.Optimizer):
    """One that forgot to call its parent."""

    def __init__(self, parameters: Any) -> None:
        self.param_groups = [{"params": list(parameters), "lr": 0.1}]


def test_an_optimizer_inside_another_is_followed(tmp_path: Path) -> None:
    model = mlp(4, 3)
    optimizer = Wrapping(torch.optim.SGD(model.parameters(), 0.25))
    with watch(model, tmp_path / "run", optimizer=optimizer) as monitor:
        for step in range(2):
            x, y = batch(step, 5, 4)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            monitor.step(loss, optimizer=optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
    scalars = read_records(tmp_path / "run").scalars
    assert scalars["train/learning_rate"].values.tolist() == [0.25] * 2
    assert scalars["global_grad_norm/post_clip"].values.tolist() == pytest.approx([0.01] * 2, rel=1e-4)


def test_an_optimizer_without_hooks_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    model = mlp(4, 3)
    with pytest.raises(ConfigError, match=r"optimizer=Half: never called Optimizer\.__init__"):
        watch(model, tmp_path / "run", optimizer=Half(model.parameters()))
    assert not (tmp_path / "run").exists()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_used_directory_is_refused_by_its_name(tmp_path: Path) -> None:
    monitor = watch(mlp(4, 3), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"^directory=.*run: holds a run already \(running\); choose another, or rem"):
        watch(mlp(4, 3), tmp_path / "run")
    monitor.close("interrupted")


class Reader(nn.Module):
    """A recurrent network of which only the last state is used."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recurrent, self.head = kind(4, 6, batch_first=True), nn.Linear(6, 3)
        self.states: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        state = self.recurrent(x)[1]
        self.states = state[0] if isinstance(state, tuple) else state
        self.states.retain_grad()
        result: Tensor = self.head(self.states[-1])
        return result


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layers_last_state_is_an_output_too(tmp_path: Path, kind: type[nn.RNNBase]) -> None:
    model = Reader(kind)
    g = torch.Generator().manual_seed(0)
    with watch(model, tmp_path / "run") as monitor:
        loss = F.cross_entropy(model(torch.randn(5, 7, 4, generator=g)), torch.tensor([0, 1, 2, 0, 1]))
        loss.backward()
        monitor.step(loss)
    assert model.states is not None
    assert model.states.grad is not None
    signal = read_records(tmp_path / "run").vectors["signal_grad_norm"].values[0, 0]
    assert signal == pytest.approx(math.sqrt(5) * model.states.grad.norm().item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_watched_network_can_be_traced(tmp_path: Path) -> None:
    model = mlp(4, 6, 3)
    x = batch(0, 5, 4)[0]
    with watch(model, tmp_path / "run") as monitor:
        traced = torch.jit.trace(model, x)
        assert torch.equal(traced(x), model(x))
        model(x).sum().backward()
        monitor.step()


def test_a_program_that_ends_in_order_has_not_failed(tmp_path: Path) -> None:
    model = mlp(4, 3)
    monitor = watch(model, tmp_path / "run")
    model(batch(0, 5, 4)[0]).sum().backward()
    monitor.step()
    with pytest.raises(SystemExit), monitor:
        raise SystemExit(0)
    assert read_run(tmp_path / "run")["status"] == "interrupted"
