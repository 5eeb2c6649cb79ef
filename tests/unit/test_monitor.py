"""watch(): which layers it finds, what it refuses, and gradients of every kind."""

from __future__ import annotations

import math
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

import gradstab
from gradstab import watch
from gradstab.config.verdict_options import Thresholds
from gradstab.errors import ConfigError, GradstabError
from gradstab.events import EventWriter, read_events, read_records
from gradstab.measure.diagnosis import Judge
from gradstab.measure.quantities import as_tensor
from gradstab.models.lenet5_1998 import lenet5_1998
from gradstab.monitor.gradients import WatchedNorms
from gradstab.monitor.judged_writer import JudgedWriter
from gradstab.monitor.layers import find_layers
from gradstab.monitor.tensors import batch_size
from gradstab.run_directory import read_run


class Net(nn.Module):
    """Definition order is not the order of calls; a token, a scale and a bare matrix are owned by the whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.embed = nn.Embedding(11, 6)
        self.rnn = nn.LSTM(6, 6, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) * self.scale + self.token
        h = self.attention(h, h, h)[0]
        y: Tensor = self.head(self.rnn(h)[0][:, -1])
        return y


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def test_layers_are_found_and_put_into_the_order_of_calls(tmp_path: Path) -> None:
    model = Net()
    assert [layer.name for layer in find_layers(model)] == ["head", "attention", "embed", "rnn"]
    with watch(model, tmp_path / "run") as monitor:
        assert monitor.layers == ["00_head", "01_attention", "02_embed", "03_rnn"]
        loss = model(torch.randint(11, (3, 5))).square().mean()
        grads = dict(
            zip(
                dict(model.named_parameters()),
                torch.autograd.grad(loss, list(model.parameters()), retain_graph=True),
                strict=True,
            )
        )
        loss.backward()
        monitor.step(loss)
        assert monitor.layers == ["00_embed", "01_attention", "02_rnn", "03_head"]
    assert read_run(tmp_path / "run")["layers"] == monitor.layers
    records = read_records(tmp_path / "run")
    groups = {
        "embed": ["embed.weight"],
        "attention": ["attention.in_proj_weight", "attention.out_proj.weight"],
        "rnn": [name for name in grads if name.startswith("rnn.weight")],
        "head": ["head.weight"],
    }
    expected = [sum(grads[name].pow(2).sum().item() for name in names) ** 0.5 for names in groups.values()]
    assert len(groups["rnn"]) == 4
    assert records.vectors["grad_norm"].values[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert records.vectors["signal_grad_norm"].values.shape == (1, 4)
    assert (records.vectors["signal_grad_norm"].values > 0).all()
    # What no module computes has no activation that anybody could know.
    assert "dead_fraction" not in records.vectors


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        ("*", (), ["0", "2", "4.0", "4.1"]),
        ("4.*", (), ["4.0", "4.1"]),
        (["0", "4.*"], "*.1", ["0", "4.0"]),
        ("*", ["[02]"], ["4.0", "4.1"]),
    ],
)
def test_patterns_choose_layers(include: str | list[str], exclude: str | list[str], names: list[str]) -> None:
    block = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Conv1d(1, 1, 1), nn.LayerNorm(3), block)
    assert [layer.name for layer in find_layers(model, include, exclude)] == names


def test_a_module_that_is_the_whole_network_has_its_class_name() -> None:
    assert [layer.name for layer in find_layers(nn.Linear(3, 2))] == ["Linear"]
    assert [layer.name for layer in find_layers(Bare())] == ["Bare"]


def _lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.LazyLinear(3)


def _sharded() -> nn.Module:
    class FullyShardedDataParallel(nn.Linear):
        pass

    return FullyShardedDataParallel(3, 3)


REFUSED: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (lambda: nn.Linear(3, 2), {"every": 0}, "every=0: has to be an integer of at least 1, or None"),
    (lambda: nn.Linear(3, 2), {"every": 1.5}, "every=1.5: has to be"),
    (lambda: nn.Linear(3, 2), {"every": True}, "every=True: has to be"),
    (lambda: nn.Linear(3, 2), {"reduction": "none"}, "reduction='none': has to be one of mean, sum"),
    (lambda: nn.Linear(3, 2), {"batch_dim": -1}, "batch_dim=-1: has to be"),
    (lambda: nn.Linear(3, 2), {"include": "conv*"}, "include='conv*', exclude=(): no layer is left of Linear"),
    (lambda: nn.Linear(3, 2), {"include": ["*", "x"]}, "include='x': matches no layer; there are Linear"),
    (lambda: nn.Linear(3, 2), {"exclude": 3}, "exclude=3: has to be a pattern"),
    (lambda: nn.Linear(3, 2), {"scaler": 1024.0}, "scaler=float: has to be a torch.amp.GradScaler"),
    (lambda: nn.Linear(3, 2), {"optimizer": "sgd"}, "optimizer=str: has to be a torch.optim.Optimizer"),
    (lambda: nn.Linear(3, 2), {"activations": ["relu"]}, "activations=['relu']: have to be classes"),
    (lambda: nn.Linear(3, 2), {"activations": nn.ReLU}, "activations=<class 'torch.nn.modules.activation.ReLU'>: have"),
    (lambda: nn.Linear(3, 2), {"activations": 3}, "activations=3: have to be classes"),
    (lambda: nn.Linear(3, 2), {"thresholds": {"learnt": 0.4}}, "thresholds=dict: has to be"),
    (lambda: nn.Linear(3, 2), {"chance_loss": "low"}, "chance_loss='low': has to be one number"),
    (lambda: nn.Linear(3, 2), {"chance_loss": torch.tensor(0.0)}, "chance_loss=0.0: has to be a finite number above 0"),
    (lambda: nn.Linear(3, 2), {"chance_loss": math.nan}, "chance_loss=nan: has to be a finite number above 0"),
    (lambda: nn.Linear(3, 2), {"optimizer": 3}, "optimizer=int: has to be a torch.optim.Optimizer"),
    (lambda: nn.Linear(3, 2), {"optimizer": [None]}, "optimizer=NoneType: has to be a torch.optim.Optimizer"),
    (lambda: nn.Linear(3, 2), {"exclude": "norm*"}, "exclude='norm*': matches no layer; there are Linear"),
    (
        lambda: nn.Linear(3, 2),
        {"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)},
        "optimizer=SGD: updates no parameter of the watched network",
    ),
    (nn.ReLU, {}, "model: ReLU has no parameters to watch"),
    (lambda: nn.LayerNorm(3), {}, "model: LayerNorm has no weight of two or more dimensions"),
    (lambda: "gpt2", {}, "model=str: has to be an nn.Module"),
    (_lazy, {}, "model: weight has no shape yet"),
    (_sharded, {}, "model: FullyShardedDataParallel shards parameters"),
    (lambda: nn.DataParallel(nn.Linear(3, 2)), {}, "model: nn.DataParallel runs copies"),
    (lambda: nn.Sequential(nn.DataParallel(nn.Linear(3, 2))), {}, "model: 0 is in nn.DataParallel, which runs copies"),
]


@pytest.mark.parametrize(("make", "options", "line"), REFUSED, ids=[line[:40] for *_, line in REFUSED])
def test_what_cannot_be_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[], Any], options: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        watch(make(), tmp_path / "run", **options)
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("directory", [3, b"here", "a\0b", "~nobody-has-this-name/x", True])
def test_what_is_no_directory_is_refused_in_one_line(directory: Any) -> None:
    with pytest.raises(ConfigError, match=r"^directory=[^\n]*$"):
        watch(nn.Linear(3, 2), directory)


def test_a_directory_with_somebody_elses_events_is_refused(tmp_path: Path) -> None:
    EventWriter(tmp_path, ["00_a"]).close()
    with pytest.raises(ConfigError, match=r"directory=.*: holds an event file already"):
        watch(nn.Linear(3, 2), tmp_path)


def test_numbers_that_are_none_are_refused_and_tensors_taken(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    thresholds = Thresholds(depth_decades=1.25)
    with watch(model, tmp_path / "run", chance_loss=torch.tensor(2.0), thresholds=thresholds) as monitor:  # type: ignore[arg-type]
        model(torch.randn(4, 3)).square().mean().backward()
        for value in ("abc", [1.0], torch.ones(2), 1j):
            with pytest.raises(ConfigError, match=r"^loss"):
                monitor.step(value)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match=r"^loss"):
                monitor.evaluated(value)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"^accuracy='0.5': has to be one number"):
            monitor.evaluated(1.0, "0.5")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"^optimizer=str: has to be a torch.optim.Optimizer$"):
            monitor.step(1.0, optimizer="sgd")  # type: ignore[arg-type]
        monitor.step(torch.tensor([0.5]))
        monitor.evaluated(torch.tensor(0.25, requires_grad=True), torch.tensor(0.75))  # type: ignore[arg-type]
    known = read_run(tmp_path / "run")
    assert (known["steps"], known["train_loss"], known["test_loss"], known["test_accuracy"]) == (1, 0.5, 0.25, 0.75)
    assert known["chance_loss"] == 2.0
    assert Thresholds(**known["thresholds"]) == thresholds
    for call in (monitor.step, monitor.evaluated):
        with pytest.raises(GradstabError, match="this monitor is closed"):
            call(1.0)


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    watch(nn.Linear(3, 2), tmp_path / "run").close("interrupted")
    with pytest.raises(ConfigError, match=r"directory=.*holds a run already"):
        watch(nn.Linear(3, 2), tmp_path / "run")


def test_a_loop_that_never_calls_step_is_told_so(tmp_path: Path) -> None:
    monitor = watch(nn.Linear(3, 2), tmp_path / "run")
    with pytest.raises(GradstabError, match=r"no step was recorded yet; call step\(loss\)"):
        monitor.verdict()
    with pytest.warns(UserWarning, match="no step was recorded"):
        monitor.close()
    assert "verdict" not in read_run(tmp_path / "run")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_norms_of_every_precision(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4, dtype=dtype) for _ in range(3)))
    wide = torch.complex128 if dtype.is_complex else torch.float64
    for parameter in model.parameters():
        parameter.grad = (torch.randn(parameter.shape, dtype=wide) * scale).to(dtype)
    if dtype == torch.float16 and scale != 1:
        pytest.skip("half precision has no such numbers")
    norms = WatchedNorms(model.parameters(), find_layers(model))
    exact = [p.grad.to(torch.complex128).abs().square().sum().sqrt().item() for p in norms.parameters]  # type: ignore[union-attr]
    near = 1e-3 if dtype == torch.bfloat16 else 1e-5
    assert as_tensor(norms.take()).tolist() == pytest.approx(exact, rel=near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_norms_of_large_matrices_keep_their_digits(dtype: torch.dtype, scale: float) -> None:
    # Summed one after another in single precision, 5e6 squares are 1e-4 off.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 17000), nn.Embedding(2**12, 2**10)).to(dtype)
    for parameter in model.parameters():
        parameter.grad = (torch.randn(parameter.shape, dtype=torch.float64) * scale).to(dtype)
    norms = WatchedNorms(model.parameters(), find_layers(model))
    exact = [p.grad.double().square().sum().sqrt().item() for p in norms.parameters]  # type: ignore[union-attr]
    assert as_tensor(norms.take()).tolist() == pytest.approx(exact, rel=5e-6)


def test_large_gradients_that_are_missing_or_lie_otherwise_in_memory() -> None:
    torch.manual_seed(0)
    columns = nn.Parameter(torch.randn(400, 300).t())
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300), nn.Embedding(1000, 200, sparse=True))
    model[0].weight = columns  # type: ignore[assignment]
    norms = WatchedNorms(model.parameters(), find_layers(model))
    for dense in (True, False):
        columns.grad = torch.randn(400, 300).t()
        model[2].weight.grad = torch.randn(1000, 200)  # type: ignore[assignment]
        model[2].weight.grad = model[2].weight.grad if dense else model[2].weight.grad.to_sparse(1)  # type: ignore[operator, union-attr]
        exact = [0.0 if p.grad is None else p.grad.to_dense().double().norm().item() for p in norms.parameters]
        assert sum(value == 0 for value in exact) == 3
        assert as_tensor(norms.take()).tolist() == pytest.approx(exact, rel=1e-6)
    columns.grad[2, 3] = math.nan  # type: ignore[index]
    assert math.isnan(as_tensor(norms.take())[0])


def test_parameters_of_mixed_precision_and_missing_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4).double(), nn.Linear(4, 4).bfloat16())
    for parameter in list(model.parameters())[:-2]:
        parameter.grad = torch.randn_like(parameter)
    norms = WatchedNorms(model.parameters(), find_layers(model))
    exact = [0.0 if p.grad is None else p.grad.double().norm().item() for p in norms.parameters]
    assert as_tensor(norms.take()).tolist() == pytest.approx(exact, rel=1e-6)
    assert sum(value == 0 for value in exact) == 2


def test_packed_and_time_first_sequences_count_their_samples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rnn = nn.GRU(3, 4)
    x = torch.randn(7, 5, 3)
    packed = nn.utils.rnn.pack_padded_sequence(x, [7] * 5)
    signals = []
    for name, inputs, dim in (("first", x, 1), ("packed", packed, 0)):
        with watch(rnn, tmp_path / name, every=1, batch_dim=dim) as monitor:
            output, _ = rnn(inputs)
            loss = (output if isinstance(output, Tensor) else output.data).square().mean()
            loss.backward()
            monitor.step(loss)
        signals.append(read_records(tmp_path / name).vectors["signal_grad_norm"].values[0, 0])
    h = rnn(x)[0].detach().requires_grad_()
    (grad,) = torch.autograd.grad(h.square().mean(), h)
    # ∂L/∂h of each sample's own loss is 5 times that of the mean over 5.
    exact = (5 * grad).square().sum((0, 2)).mean().sqrt().item()
    assert signals == pytest.approx([exact, exact], rel=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_batchs_size_is_that_of_its_first_tensor_with_such_an_axis() -> None:
    nested = torch.nested.nested_tensor([torch.ones(3), torch.ones(5)])
    inputs = ((torch.ones(()), {"x": [None, torch.ones(7, 4)]}), {})
    assert [batch_size(nested, dim) for dim in (0, 1)] == [2, None]
    assert [batch_size(inputs, dim) for dim in (0, 1, 2)] == [7, 4, None]


def test_dead_units_are_a_convolutions_maps_whatever_kind_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lenet5_1998(in_shape=(1, 8, 8), out_features=3, activation=nn.ReLU)
    with torch.no_grad(), watch(model, tmp_path / "run") as monitor:
        for layer, dead in ((model.layers[0], 2), (model.layers[1], 5)):
            nn.init.constant_(layer.affine.bias, 1.0)  # type: ignore[arg-type]
            layer.affine.bias[:dead] = -100.0  # type: ignore[operator, index]
        with torch.enable_grad():
            model(torch.randn(4, 1, 8, 8)).square().mean().backward()
        monitor.step(1.0)
    dead_fraction = read_records(tmp_path / "run").vectors["dead_fraction"].values[0]
    assert dead_fraction[:2].tolist() == pytest.approx([2 / 6, 5 / 16])


def test_anybodys_rms_norm_carries_a_layers_output_to_its_activation(tmp_path: Path) -> None:
    class LlamaRMSNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.square().mean(-1, keepdim=True).rsqrt()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), LlamaRMSNorm(), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(2, 3)
    with watch(model, tmp_path / "run") as monitor:
        model(x).square().mean().backward()
        monitor.step(1.0)
    dead = (model[:2](x) <= 0).all(0).float().mean().item()
    assert 0 < dead < 1
    assert read_records(tmp_path / "run").vectors["dead_fraction"].values.tolist() == [pytest.approx([dead])]


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_have_no_part_in_the_depth(tmp_path: Path, kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    with watch(model, tmp_path / "run") as monitor:
        model(torch.ones(3, 2, dtype=torch.long)).square().mean().backward()
        monitor.step(1.0)
    assert read_run(tmp_path / "run")["depth_layers"] == ["01_1", "02_2"]


def test_complex_parameters_are_not_taken_for_gone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64), nn.Linear(4, 2, dtype=torch.complex64))
    with watch(model, tmp_path / "run", every=1) as monitor:
        for _ in range(2):
            model(torch.ones(3, 4, dtype=torch.complex64)).abs().square().mean().backward()
            monitor.step(1.0)
    assert monitor.notes == []


def test_own_activation_classes_are_taken_at_their_word(tmp_path: Path) -> None:
    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    found = []
    for number, kinds in enumerate([(), (Swish,)]):
        model = nn.Sequential(nn.Linear(3, 4), Swish(), nn.Linear(4, 2))
        with watch(model, tmp_path / str(number), activations=kinds) as monitor:
            loss = F.cross_entropy(model(torch.randn(5, 3)), torch.zeros(5, dtype=torch.long))
            loss.backward()
            monitor.step(loss)
        found.append("activation_std" in read_records(tmp_path / str(number)).vectors)
    assert found == [False, True]


def test_reports_of_checkpointed_blocks_are_whole(tmp_path: Path) -> None:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    x = torch.randn(6, 4, requires_grad=True)
    found = []
    for name in ("plain", "reentrant", "other"):
        with watch(model, tmp_path / name, every=1) as monitor:
            y = model(x) if name == "plain" else checkpoint(model, x, use_reentrant=name == "reentrant")
            loss = y.square().mean(1).mean()
            loss.backward()
            monitor.step(loss)
        found.append(read_records(tmp_path / name).vectors["signal_grad_norm"].values[0].tolist())
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-6)


def test_imports_wait_until_they_are_needed_and_name_the_extra_that_is_missing() -> None:
    code = """
import sys, gradstab
assert "torch" not in sys.modules
from gradstab import watch
assert callable(watch)
sys.modules.update({"lightning": None, "pytorch_lightning": None, "transformers": None})
for library in ("lightning", "transformers"):
    try:
        __import__(f"gradstab.monitor.{library}")
    except ImportError as error:
        print(error)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == [
        f"{library} is not installed; pip install 'gradstab[{library}]'" for library in ("lightning", "transformers")
    ]
    with pytest.raises(AttributeError, match="no attribute 'watched'"):
        _ = gradstab.watched


def test_repeated_events_are_written_as_the_event_writer_writes_them(tmp_path: Path) -> None:
    tags = ["00_a", "01_b", "02_c"]
    steps = [
        ({"train/loss": 1.5, "depth": 2.0}, {"grad_norm": np.array([1.0, 2.0, 3.0])}),
        ({"train/loss": math.inf, "depth": -1e60}, {"grad_norm": np.array([math.nan, 1e300, 0.0])}),
        ({"train/loss": 0.5, "depth": 0.25}, {"grad_norm": np.array([1e-300, 5.0, 6.0]), "std": np.array([7.0, 8.0])}),
        ({"train/loss": 0.5}, {"grad_norm": np.array([1.0, 5.0, 6.0]), "std": np.array([9.0, math.inf])}),
        ({"train/loss": 0.75, "depth": 1.0}, {"grad_norm": np.array([3.0, 2.0, 1.0])}),
        ({"train/loss": 0.25, "depth": 1.5}, {"grad_norm": np.array([4.0, 2.0, 1.0]), "std": np.array([1.0, 0.0])}),
    ]
    events = []
    for name in ("ledger", "writer"):
        (tmp_path / name).mkdir()
        judge = Judge(tags, 2, Thresholds())
        writer = JudgedWriter(tmp_path / name, tags, judge, depth=[0, 1], scaled=False) if name == "ledger" else None
        writer = writer or EventWriter(tmp_path / name, tags)
        for step, (scalars, vectors) in enumerate(steps):
            writer.write(step, scalars, vectors, wall_time=step + 0.5)
        writer.close()
        events.append([event.SerializeToString() for event in list(read_events(writer.path))[1:]])
    assert len(events[0]) == len(steps)
    assert events[0] == events[1]
