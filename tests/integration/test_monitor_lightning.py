"""The callback for Lightning, with the real Trainer: what it records is what autograd gives for the same batches."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradstab.events import read_records
from gradstab.run_directory import read_run

with warnings.catch_warnings():
    # Deprecations inside Lightning and what it imports are not ours to mend.
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning.pytorch")
    from gradstab.monitor.lightning import GradstabCallback

# What Lightning advises its users, and what torch deprecates that Lightning still calls.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]


class Net(lightning.LightningModule):  # type: ignore[misc,name-defined]
    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 5), nn.ReLU())
        self.head = nn.Linear(5, 3)
        self.automatic_optimization = not manual

    def training_step(self, batch: list[Tensor], index: int) -> Tensor | None:  # noqa: ARG002
        loss = F.cross_entropy(self.head(self.body(batch[0])), batch[1])
        if self.automatic_optimization:
            return loss
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return torch.optim.SGD(self.parameters(), lr=0.1)
        return [torch.optim.SGD(part.parameters(), lr=rate) for part, rate in ((self.body, 0.1), (self.head, 0.2))]


def loader(count: int = 6) -> DataLoader[Any]:
    g = torch.Generator().manual_seed(1)
    return DataLoader(
        TensorDataset(torch.randn(count * 4, 6, generator=g), torch.randint(3, (count * 4,), generator=g)), batch_size=4
    )


def fit(model: Net, *callbacks: Any, **options: Any) -> Any:
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(model, loader())
    return trainer


def by_hand(model: Net, micro: int, clip: float | None) -> list[dict[str, Any]]:
    """The same training in a plain loop: norms of the layers' gradients by autograd.grad, the loss, the scale."""
    layers = [model.body[0], model.body[3], model.head]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    batches = list(loader())
    for start in range(0, len(batches), micro):
        parts = batches[start : start + micro]
        losses = [F.cross_entropy(model.head(model.body(x)), y) / micro for x, y in parts]
        grads = torch.autograd.grad(sum(losses), list(model.parameters()))  # type: ignore[arg-type]
        named = dict(zip(map(id, model.parameters()), grads, strict=True))
        norm = torch.stack([g.norm() for g in grads]).norm()
        scale = 1.0 if clip is None else min(1.0, clip / (norm.item() + 1e-6))
        found.append({
            # The last ones of an epoch may be fewer than each was divided by.
            "loss": sum(loss.item() for loss in losses) * micro / len(parts),
            "norms": [named[id(layer.weight)].norm().item() for layer in layers],
            "scale": scale,
        })  # fmt: skip
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter.grad = grad * scale
        optimizer.step()
    return found


@pytest.mark.parametrize(("micro", "clip"), [(1, None), (2, 0.05), (3, None), (4, None)])
def test_lightning_records_norms_before_and_after_clipping(tmp_path: Path, micro: int, clip: float | None) -> None:
    callback = GradstabCallback(tmp_path / "run", every=2)
    fit(Net(), callback, accumulate_grad_batches=micro, gradient_clip_val=clip)
    records, known = read_records(tmp_path / "run"), read_run(tmp_path / "run")
    expected = by_hand(Net().train(), micro, clip)
    assert records.layers == ["00_body.0", "01_body.3", "02_head"]
    assert known["status"] == "completed"
    assert known["steps"] == len(expected) == math.ceil(6 / micro)
    assert records.vectors["grad_norm"].values.tolist() == [pytest.approx(e["norms"], rel=1e-5) for e in expected]
    assert records.scalars["train/loss"].values.tolist() == pytest.approx([e["loss"] for e in expected], rel=1e-5)
    assert records.scalars["train/learning_rate"].values.tolist() == pytest.approx([0.1] * len(expected))
    if clip is not None:
        scales = records.scalars["clip/scale"].values
        assert scales.tolist() == pytest.approx([e["scale"] for e in expected], rel=1e-4)
        assert known["clipped_steps"] == sum(e["scale"] < 1 for e in expected) > 0
    for name in ("signal_grad_norm", "activation_std", "dead_fraction", "update_ratio"):
        assert records.vectors[name].steps.tolist() == list(range(0, len(expected), 2)), name
    assert callback.verdict().to_dict()["labels"] == known["verdict"]["labels"]


def test_watching_changes_nothing_that_lightning_trains(tmp_path: Path) -> None:
    bare, watched = Net(), Net()
    fit(bare, gradient_clip_val=0.1)
    fit(watched, GradstabCallback(tmp_path / "run", every=1), gradient_clip_val=0.1)
    assert all(torch.equal(value, bare.state_dict()[key]) for key, value in watched.state_dict().items())


def test_optimizers_stepped_by_hand_make_one_step_together(tmp_path: Path) -> None:
    fit(Net(manual=True), GradstabCallback(tmp_path / "run", every=3))
    records = read_records(tmp_path / "run")
    grads = records.vectors["grad_norm"].values
    assert grads.shape == (6, 3)
    assert (grads > 0).all()
    model = Net().train()
    x, y = next(iter(loader()))
    F.cross_entropy(model.head(model.body(x)), y).backward()
    assert grads[0].tolist() == pytest.approx(
        [layer.weight.grad.norm().item() for layer in (model.body[0], model.body[3], model.head)], rel=1e-5
    )
    assert records.vectors["signal_grad_norm"].steps.tolist() == [0, 3]
    assert (records.vectors["update_ratio"].values > 0).all()


def test_bfloat16_mixed_precision_is_watched(tmp_path: Path) -> None:
    fit(Net(), GradstabCallback(tmp_path / "run"), precision="bf16-mixed")
    assert (read_records(tmp_path / "run").vectors["grad_norm"].values > 0).all()


class Fails(Net):
    def training_step(self, batch: list[Tensor], index: int) -> Tensor | None:
        if index == 3:
            raise RuntimeError("the data ran out")
        return super().training_step(batch, index)


def test_a_failure_ends_the_record(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ran out"):
        fit(Fails(), GradstabCallback(tmp_path / "run"))
    known = read_run(tmp_path / "run")
    assert (known["status"], known["reason"], known["steps"]) == ("failed", "RuntimeError: the data ran out", 3)
    assert len(read_records(tmp_path / "run").vectors["grad_norm"].steps) == 3


class Clips(Net):
    """Clips by hand: in ``training_step``, or in the hook that follows the backward pass."""

    def __init__(self, place: str) -> None:
        super().__init__(manual=place == "step")
        self.place = place
        self.norms: list[float] = []

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def clip(self) -> None:
        self.norms.append(torch.nn.utils.clip_grad_norm_(self.parameters(), 0.01).item())

    def on_after_backward(self) -> None:
        if self.place == "hook":
            self.clip()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor | None:
        if self.place == "hook":
            return super().training_step(batch, index)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.head(self.body(batch[0])), batch[1]))
        self.clip()
        optimizer.step()
        return None


@pytest.mark.parametrize("place", ["step", "hook"])
def test_what_a_module_clips_by_hand_is_looked_at_before(tmp_path: Path, place: str) -> None:
    model = Clips(place)
    fit(model, GradstabCallback(tmp_path / "run"))
    scalars = read_records(tmp_path / "run").scalars
    assert scalars["global_grad_norm/pre_clip"].values.tolist() == pytest.approx(model.norms, rel=1e-5)
    assert scalars["global_grad_norm/post_clip"].values.tolist() == pytest.approx([0.01] * 6, rel=1e-3)
    assert read_run(tmp_path / "run")["clipped_steps"] == 6


class Codes(Net):
    """Has an optimizer of latent codes outside the module, and no other or one of its own."""

    def __init__(self, *, own: bool) -> None:
        super().__init__(manual=True)
        self.own = own
        self.codes = [torch.zeros(6, requires_grad=True)]

    def configure_optimizers(self) -> Any:
        of_codes = torch.optim.SGD(self.codes, lr=0.1)
        return [torch.optim.SGD(self.parameters(), lr=0.1), of_codes] if self.own else [of_codes]

    def training_step(self, batch: list[Tensor], index: int) -> None:  # noqa: ARG002
        self.manual_backward(F.cross_entropy(self.head(self.body(batch[0] + self.codes[0])), batch[1]))
        for optimizer in self.optimizers() if self.own else [self.optimizers()]:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.filterwarnings("ignore:.*no step was recorded.*")
def test_optimizers_of_what_the_module_does_not_own_are_passed_over(tmp_path: Path, own: bool) -> None:
    fit(Codes(own=own), GradstabCallback(tmp_path / "run"))
    known = read_run(tmp_path / "run")
    assert (known["status"], known["steps"]) == ("completed", 6 if own else 0)
