"""What a monitor makes of skip paths, of losses made of gradients, and of a guess's loss that nobody has told."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradstab import watch
from gradstab.events import read_records
from gradstab.measure.afterwards import judge_records
from gradstab.measure.verdict import Verdict
from gradstab.run_directory import read_run

BATCH = 32


class Residual(nn.Module):
    """x + scale · branch(x), again and again: as modules of their own, or in one loop, behind a norm or without."""

    def __init__(self, depth: int, width: int, *, blocks: bool, norm: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(depth))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.wrapped = nn.ModuleList(nn.Sequential(layer, nn.ReLU()) for layer in self.layers) if blocks else None
        self.head, self.scale = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10)), scale
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]
        self.streams: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.streams = []
        for i, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            self.streams.append(x)
            branch = self.wrapped[i](norm(x)) if self.wrapped is not None else F.relu(layer(norm(x)))
            x = x + self.scale * branch
        y: Tensor = self.head(x)
        return y


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_delta_of_a_residual_network_is_that_of_its_stream(
    tmp_path: Path, blocks: bool, norm: bool, parts: int
) -> None:
    torch.manual_seed(0)
    model = Residual(4, 12, blocks=blocks, norm=norm)
    twin = copy.deepcopy(model)
    with watch(model, tmp_path / "run", every=1) as monitor:
        for _ in range(2):
            model.zero_grad()
            squares, losses = torch.zeros(4, dtype=torch.float64), []
            for _ in range(parts):
                x, y = torch.randn(BATCH, 12), torch.randint(10, (BATCH,))
                loss = F.cross_entropy(model(x), y) / parts
                loss.backward()  # type: ignore[no-untyped-call]
                losses.append(loss.item())
                alone = F.cross_entropy(twin(x.requires_grad_()), y) / parts
                squares += torch.stack([g.double().square().sum() for g in torch.autograd.grad(alone, twin.streams)])
            monitor.step(sum(losses))
    known, records = read_run(tmp_path / "run"), read_records(tmp_path / "run")
    trunk = [records.layers.index(tag) for tag in known["trunk_layers"]]
    expected = (squares * BATCH * parts).sqrt().numpy()
    stream = records.vectors["stream_grad_norm"].values[-1][trunk]
    # Below the first layer there is nothing that a gradient could pass it by for: its own δ counts.
    assert len(stream) == 4
    assert stream[1:] == pytest.approx(expected[1:], rel=1e-5)
    assert stream[0] == records.vectors["signal_grad_norm"].values[-1][trunk[0]] < expected[0]
    assert judge_records(records, known).labels == tuple(known["verdict"]["labels"])


def trained(model: nn.Module, directory: Path, x: Tensor, y: Tensor, rate: float, steps: int) -> Verdict:
    """Watched without being told the loss of guessing."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    loss_of = F.cross_entropy if y.dtype == torch.long else F.mse_loss
    generator = torch.Generator().manual_seed(0)
    with watch(model, directory, optimizer=optimizer, every=10) as monitor:
        for _ in range(steps):
            some = torch.randint(len(x), (BATCH,), generator=generator)
            loss = loss_of(model(x[some]), y[some])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            monitor.step(loss)
            optimizer.step()
    verdict = monitor.verdict()
    assert judge_records(read_records(directory), read_run(directory)) == verdict
    return verdict


@pytest.mark.parametrize(("scale", "label"), [(1.0, "exploding"), (0.18, "healthy")])
def test_a_stream_that_explodes_is_told_of(tmp_path: Path, scale: float, label: str) -> None:
    torch.manual_seed(0)
    model = Residual(30, 32, blocks=False, scale=scale)
    x = torch.randn(512, 32)
    verdict = trained(model, tmp_path / "run", x, (x[:, :10] * 3).argmax(1), 0.01, 150)
    assert label in verdict.labels
    spans = [finding.quantity for finding in verdict.findings if finding.rule == "depth_span"]
    assert spans == ["stream_grad_norm"] * (label == "exploding")


def test_a_first_loss_that_exploded_is_nothing_to_learn_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Residual(40, 32, blocks=True)
    model.head[0] = nn.Identity()
    x = torch.randn(512, 32)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with watch(model, tmp_path / "run", optimizer=optimizer, every=10) as monitor:
        losses = []
        for _ in range(120):
            loss = F.cross_entropy(model(x), (x[:, :10] * 3).argmax(1))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            monitor.step(loss)
            losses.append(loss.item())
            optimizer.step()
    # Far below the first step's, and thousands of times guessing's all the same.
    assert 100 * losses[-1] < losses[0]
    assert losses[-1] > 1000 * 2.3
    assert "exploding" in monitor.verdict().labels


@pytest.mark.parametrize("final", [nn.Sigmoid, nn.Identity])
@pytest.mark.parametrize(("depth", "learns"), [(1, True), (12, False)])
def test_a_constant_output_has_learnt_nothing_however_far_the_loss_fell(
    tmp_path: Path, depth: int, learns: bool, final: type[nn.Module]
) -> None:
    torch.manual_seed(1)
    # Far from what a network puts out at first: most of the first loss is the way to the mean.
    x = 0.2 * torch.sigmoid(2 * torch.randn(512, 3) @ torch.randn(3, 16))
    inputs = (x - x.mean(0)) / x.std()
    chain = [part for i in range(depth) for part in (nn.Linear(16, 16), nn.Sigmoid())]
    model = nn.Sequential(*chain, nn.Linear(16, 16), final())
    verdict = trained(model, tmp_path / "run", inputs, x, 1.0, 600)
    constant, reached = (x - x.mean(0)).square().mean().item(), F.mse_loss(model(inputs), x).item()
    assert (reached < 0.5 * constant) == learns
    assert ("healthy" in verdict.labels) == learns
    assert ("vanishing" in verdict.labels) != learns


@pytest.mark.parametrize("steps", [5, 20, 200])
def test_outputs_that_start_at_the_targets_mean_do_not_collapse(tmp_path: Path, steps: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    nn.init.constant_(model[-1].bias, 2000.0)  # type: ignore[arg-type]
    x = torch.randn(512, 16)
    verdict = trained(model, tmp_path / "run", x, 2000 + 3 * torch.tanh(x[:, :1]), 1e-3, steps)
    assert verdict.labels == ("healthy",)


def physics(model: nn.Module, inside: Tensor, edge: Tensor, *, edge_first: bool) -> Tensor:
    """The loss of a network that is to solve u'' = -u with u = 0 at the edge: made of its own derivatives."""
    at_edge = model(edge).square().mean() if edge_first else None
    u = model(inside)
    (slope,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), inside, create_graph=True)
    residual = (bend + u).square().mean()
    return residual + (model(edge).square().mean() if at_edge is None else at_edge)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("edge_first", [True, False])
@pytest.mark.parametrize("at_edge", [8, 24])
def test_what_a_loss_is_made_of_is_no_loss(tmp_path: Path, at_edge: int, edge_first: bool, to_none: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(1, 10), nn.Linear(10, 10), nn.Linear(10, 1)]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    inside, edge = torch.rand(24, 1, requires_grad=True), torch.rand(at_edge, 1)
    with watch(model, tmp_path / "run", optimizer=optimizer, every=1) as monitor:
        for _ in range(3):
            twin = copy.deepcopy(model)
            loss = physics(model, inside, edge, edge_first=edge_first)
            optimizer.zero_grad(set_to_none=to_none)
            loss.backward()  # type: ignore[no-untyped-call]
            monitor.step(loss)
            optimizer.step()
    seen: list[Tensor] = []
    handles = [twin[i].register_forward_hook(lambda _m, _a, h: seen.append(h)) for i in (0, 2, 4)]
    alone = physics(twin, inside, edge, edge_first=edge_first)
    squares = [grad.double().square().sum().item() for grad in torch.autograd.grad(alone, seen)]
    for handle in handles:
        handle.remove()
    # As many samples without a way back between them are taken for the same ones, seen twice.
    samples = 24 if at_edge == 24 and edge_first else 24 + at_edge
    expected = [(samples * (squares[i] + squares[i + 3])) ** 0.5 for i in range(3)]
    measured = read_records(tmp_path / "run").vectors["signal_grad_norm"].values[-1]
    assert measured == pytest.approx(expected, rel=1e-4)


class Hidden(nn.Module):
    """Blocks whose norm is a function: no module takes the stream in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(F.layer_norm(x, (8,))))
        return x.mean(1)


class Recurrent(nn.Module):
    """What is read last tells what a sequence was."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x.unsqueeze(1).expand(-1, 5, -1))[0][:, -1]).squeeze(1)
        return y


@pytest.mark.parametrize(
    ("network", "said"),
    [(Hidden, "past all but 1 of the 3 layers"), (Recurrent, "rnn: the gradient through time"), (None, "")],
)
def test_what_no_rule_on_depth_can_see_is_said(tmp_path: Path, network: type[nn.Module] | None, said: str) -> None:
    torch.manual_seed(0)
    model = Residual(4, 8, blocks=False) if network is None else network()
    x = torch.randn(BATCH, 8)
    with watch(model, tmp_path / "run") as monitor:
        loss = model(x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        monitor.step(loss)
    notes = read_run(tmp_path / "run")["notes"]
    assert len(notes) == bool(said)
    assert all(said in note for note in notes)


class Detector(nn.Module):
    """Two outputs, the first of which makes up next to nothing of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.small, self.large = nn.Linear(32, 3), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.small(h), self.large(h)


@pytest.mark.parametrize("reduction", ["several outputs", "mean", "sum"])
def test_what_is_not_constant_is_not_taken_for_it(tmp_path: Path, reduction: str) -> None:
    torch.manual_seed(0)
    model = Detector() if reduction == "several outputs" else nn.Sequential(Detector().body, nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, way = torch.randn(512, 16), torch.randn(16, 4)
    y = 2 * x @ way + 4 * torch.randn(512, 4)
    with watch(
        model, tmp_path / "run", optimizer=optimizer, every=10, reduction="sum" if reduction == "sum" else "mean"
    ) as monitor:
        for _ in range(500):
            found = model(x)
            if isinstance(found, tuple):
                loss = F.mse_loss(found[1], y) + 1e-3 * found[0].square().mean()
            else:
                loss = F.mse_loss(found, y, reduction=reduction)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            monitor.step(loss)
            optimizer.step()
    assert monitor.verdict().labels == ("healthy",)
    assert ("output_reach" in read_records(tmp_path / "run").scalars) == (reduction != "several outputs")


def test_layers_that_are_unfrozen_are_judged_along_their_stream(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Residual(30, 32, blocks=False)
    model.layers.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    x = torch.randn(64, 32)
    with watch(model, tmp_path / "run", optimizer=optimizer, every=5, chance_loss=2.3) as monitor:
        for step in range(40):
            if step == 12:
                model.layers.requires_grad_(True)
            loss = F.cross_entropy(model(x), x[:, :10].argmax(1))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            monitor.step(loss)
            optimizer.step()
    assert len(read_run(tmp_path / "run")["trunk_layers"]) == 30
    assert "exploding" in monitor.verdict().labels


def test_a_part_of_the_stream_is_not_the_stream(tmp_path: Path) -> None:
    class Parted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4))
            self.mixed = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for small, mixed in zip(self.small, self.mixed, strict=True):
                a, b = mixed(x).chunk(2, -1)
                x = torch.cat([b + 1e-4 * small(a), b], -1)
            return x

    torch.manual_seed(0)
    model = Parted()
    with watch(model, tmp_path / "run") as monitor:
        loss = model(torch.randn(BATCH, 16)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        monitor.step(loss)
        assert "vanishing" not in monitor.verdict().labels


def test_an_output_that_is_asked_for_its_slope_has_no_part_in_the_loss(tmp_path: Path) -> None:
    found = []
    for penalty in (0.0, 1e-6):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        x, z = torch.randn(BATCH, 4), torch.randn(BATCH, 4, requires_grad=True)
        with watch(model, tmp_path / f"{penalty}") as monitor:
            loss = model(x).square().mean()
            if penalty:
                (slope,) = torch.autograd.grad(model(z).sum(), z, create_graph=True)
                loss = loss + penalty * slope.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            monitor.step(loss)
        found.append(read_records(tmp_path / f"{penalty}").vectors["signal_grad_norm"].values[0][-1])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
