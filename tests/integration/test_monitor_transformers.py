"""The callback for Hugging Face's Trainer, with the real one: a tiny GPT-2 made from its configuration, no download."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradstab.errors import ConfigError
from gradstab.events import read_records
from gradstab.run_directory import read_run

with warnings.catch_warnings():
    # Deprecations inside transformers and what it imports are not ours to mend.
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    from gradstab.monitor.transformers import GradstabCallback


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=2, n_embd=16, n_head=2, vocab_size=19, n_positions=8, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def samples(count: int) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(1)
    rows = [torch.randint(19, (8,), generator=g) for _ in range(count)]
    return [{"input_ids": row, "labels": row} for row in rows]


class Fails(TrainerCallback):  # type: ignore[misc]
    """Stops a run where it is told to, by raising."""

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 2:
            raise RuntimeError("the data ran out")


def train(model: Any, folder: Path, *callbacks: Any, **options: Any) -> Any:
    settings = {
        "per_device_train_batch_size": 2, "num_train_epochs": 1, "optim": "sgd", "learning_rate": 0.1,
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no", "train_sampling_strategy": "sequential",
    }  # fmt: skip
    arguments = TrainingArguments(str(folder), **settings | options)
    trainer = Trainer(model, arguments, train_dataset=samples(8), eval_dataset=samples(4), callbacks=list(callbacks))
    trainer.train()
    return trainer


def by_hand(micro: int, clip: float) -> list[dict[str, Any]]:
    """The same training in a plain loop: norms by autograd.grad, the mean loss, the scale of clipping."""
    model = gpt2().train()
    found, rows = [], samples(8)
    names = [name for name, _ in model.named_parameters()]
    for start in range(0, 8, 2 * micro):
        batch = torch.stack([row["input_ids"] for row in rows[start : start + 2 * micro]])
        # The Trainer divides by all labels, the first of each row included, which predicts nothing.
        loss = model(input_ids=batch, labels=batch, num_items_in_batch=batch.numel()).loss
        grads = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
        norm = torch.stack([g.norm() for g in grads.values()]).norm().item()
        scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        found.append({"loss": loss.item(), "grads": {n: g.norm().item() for n, g in grads.items()}, "scale": scale})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= 0.1 * scale * grads[name]
    return found


@pytest.mark.parametrize(("micro", "clip"), [(1, 0.0), (2, 0.5), (1, 1.0)])
def test_the_trainers_gradients_are_recorded_before_and_after_clipping(tmp_path: Path, micro: int, clip: float) -> None:
    callback = GradstabCallback(tmp_path / "run", every=2)
    model = gpt2()
    train(model, tmp_path / "out", callback, gradient_accumulation_steps=micro, max_grad_norm=clip)
    records, known = read_records(tmp_path / "run"), read_run(tmp_path / "run")
    expected = by_hand(micro, clip)
    assert known["steps"] == len(expected) == 4 // micro
    assert known["status"] == "completed"
    assert [tag.split("_", 1)[1] for tag in records.layers[:3]] == [
        "transformer.wte", "transformer.wpe", "transformer.h.0.attn.c_attn",
    ]  # fmt: skip
    for row, entry in zip(records.vectors["grad_norm"].values, expected, strict=True):
        for tag, value in zip(records.layers, row, strict=True):
            name = tag.split("_", 1)[1].replace("lm_head", "transformer.wte")
            assert value == pytest.approx(entry["grads"][f"{name}.weight"], rel=1e-4), tag
    assert records.scalars["train/loss"].values.tolist() == pytest.approx([e["loss"] for e in expected], rel=1e-4)
    whole = [sum(v**2 for v in e["grads"].values()) ** 0.5 for e in expected]
    assert records.scalars["global_grad_norm/pre_clip"].values.tolist() == pytest.approx(whole, rel=1e-4)
    if clip:
        assert records.scalars["clip/scale"].values.tolist() == pytest.approx([e["scale"] for e in expected], rel=1e-3)
        assert known["clipped_steps"] > 0
    signals = records.vectors["signal_grad_norm"]
    assert signals.steps.tolist() == list(range(0, len(expected), 2))
    assert (signals.values > 0).all()
    # The activation of a block's first dense layer is a module that transformers has.
    fc = [i for i, tag in enumerate(records.layers) if tag.endswith("c_fc")]
    assert (records.vectors["activation_std"].values[:, fc] > 0).all()
    assert callback.verdict().to_dict()["labels"] == known["verdict"]["labels"] == ["healthy"]


def test_watching_changes_nothing_that_the_trainer_trains(tmp_path: Path) -> None:
    bare, watched = gpt2(), gpt2()
    train(bare, tmp_path / "a", max_grad_norm=0.5)
    train(watched, tmp_path / "b", GradstabCallback(tmp_path / "run", every=1), max_grad_norm=0.5)
    assert all(torch.equal(value, bare.state_dict()[key]) for key, value in watched.state_dict().items())


class Averages(TrainerCallback):  # type: ignore[misc]
    """Keeps copies of the network while it trains, as an exponential moving average does, and uses them."""

    def on_step_begin(self, _args: Any, _state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            rows = samples(3)[2]["input_ids"][None]
            twin(input_ids=rows, labels=rows).loss.backward()


def test_copies_of_the_network_leave_the_record_alone(tmp_path: Path) -> None:
    found = []
    for name, others in (("plain", []), ("copied", [Averages()])):
        train(gpt2(), tmp_path / f"{name}_out", GradstabCallback(tmp_path / name, every=1), *others)
        records = read_records(tmp_path / name)
        found.append({key: s.values for key, s in (records.vectors | records.scalars).items()})
    assert set(found[0]) == set(found[1])
    for key, values in found[0].items():
        assert np.array_equal(values, found[1][key], equal_nan=True), key


def test_evaluations_and_the_logged_loss_are_recorded(tmp_path: Path) -> None:
    callback = GradstabCallback(tmp_path / "run")
    options = {"eval_strategy": "steps", "eval_steps": 2, "label_smoothing_factor": 0.1}
    train(gpt2(), tmp_path / "out", callback, logging_strategy="steps", logging_steps=1, **options)
    records = read_records(tmp_path / "run")
    assert records.scalars["test/loss"].steps.tolist() == [2, 4]
    # Label smoothing happens outside the network: step 1's row has what was logged after step 0.
    assert len(records.scalars["train/loss"].steps) > 0


def test_an_update_of_fewer_micro_batches_has_no_loss(tmp_path: Path) -> None:
    callback = GradstabCallback(tmp_path / "run")
    # Of the four batches of an epoch three make up one update, and the last one another.
    train(gpt2(), tmp_path / "out", callback, gradient_accumulation_steps=3, num_train_epochs=2)
    records = read_records(tmp_path / "run")
    assert records.vectors["grad_norm"].steps.tolist() == [0, 1, 2, 3]
    known = records.scalars["train/loss"]
    assert known.steps[np.isfinite(known.values)].tolist() == [0, 2]


def test_a_failure_leaves_a_record_that_reads(tmp_path: Path) -> None:
    callback = GradstabCallback(tmp_path / "run")
    with pytest.raises(RuntimeError, match="ran out"):
        train(gpt2(), tmp_path / "out", callback, Fails())
    callback.close("failed", "the data ran out")
    known = read_run(tmp_path / "run")
    assert (known["status"], known["steps"]) == ("failed", 2)
    assert len(read_records(tmp_path / "run").vectors["grad_norm"].steps) == 2


def test_arguments_that_the_trainer_gives_are_refused() -> None:
    with pytest.raises(ConfigError, match="scaler: the trainer gives it"):
        GradstabCallback("run", scaler=None)
    with pytest.raises(ConfigError, match="evry: is no argument of GradstabCallback; allowed: every, include"):
        GradstabCallback("run", evry=3)


class Backwards(torch.nn.Module):
    """Defines its last layer first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body = torch.nn.Linear(16, 2), torch.nn.Linear(8, 16)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(torch.relu(self.body(x)))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_the_first_steps_norms_are_those_of_the_layers_they_stand_beside(tmp_path: Path) -> None:
    model, callback = Backwards(), GradstabCallback(tmp_path / "run")
    own: dict[str, list[float]] = {}
    for name, layer in (("head", model.head), ("body", model.body)):
        layer.weight.register_post_accumulate_grad_hook(
            lambda p, name=name: own.setdefault(name, []).append(p.grad.norm().item())
        )
    g = torch.Generator().manual_seed(0)
    rows = [{"x": torch.randn(8, generator=g), "labels": torch.tensor(i % 2)} for i in range(24)]
    settings = {
        **{"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "max_grad_norm": 0.1},
        **{"per_device_train_batch_size": 8, "num_train_epochs": 1},
    }
    arguments = TrainingArguments(str(tmp_path / "hf"), **settings)
    Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    records = read_records(tmp_path / "run")
    assert records.layers == ["00_body", "01_head"]
    expected = np.array([own["body"], own["head"]]).T
    assert records.vectors["grad_norm"].values == pytest.approx(expected, rel=1e-5)
    assert records.scalars["global_grad_norm/post_clip"].values.tolist() == pytest.approx([0.1] * 3, rel=1e-3)


def test_evaluating_after_training_leaves_the_record_alone(tmp_path: Path) -> None:
    trainer = train(gpt2(), tmp_path / "out", GradstabCallback(tmp_path / "run"))
    before = read_run(tmp_path / "run")
    assert trainer.evaluate()["eval_loss"] > 0
    assert read_run(tmp_path / "run") == before


class Retries(Trainer):  # type: ignore[misc]
    """Runs out of memory once, and computes its loss itself."""

    failed = False

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == 1 and not self.failed:
            self.failed = True
            raise RuntimeError("CUDA out of memory.")
        found: Tensor = super().training_step(*args, **kwargs)
        return found

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        logits = model(inputs["input_ids"]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())
        return (loss, {"logits": logits}) if return_outputs else loss


def test_a_training_that_begins_again_is_recorded_beside_and_logged_losses_where_they_belong(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        str(tmp_path / "out"), per_device_train_batch_size=2, num_train_epochs=1, report_to=[], save_strategy="no",
        disable_tqdm=True, use_cpu=True, logging_steps=2, eval_strategy="steps", eval_steps=2,
        auto_find_batch_size=True,
    )  # fmt: skip
    callback = GradstabCallback(tmp_path / "run")
    trainer = Retries(gpt2(), arguments, train_dataset=samples(8), eval_dataset=samples(4), callbacks=[callback])
    with pytest.warns(UserWarning, match="holds this callback's earlier run"):
        trainer.train()
    assert (read_run(tmp_path / "run")["steps"], read_run(tmp_path / "run")["status"]) == (1, "interrupted")
    logged = {entry["step"] - 1: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    found = read_records(tmp_path / "run-2").scalars
    recorded = dict(zip(found["train/loss"].steps.tolist(), found["train/loss"].values.tolist(), strict=True))
    assert list(recorded) == list(logged) == list(range(1, trainer.state.global_step, 2))
    assert recorded == pytest.approx(logged, abs=1e-4)
    assert len(found["test/loss"].steps) == len(logged)
