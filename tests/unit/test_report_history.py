"""What a run keeps for TensorBoard's pictures while it lasts, against all of its records."""

from __future__ import annotations

import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

from gradstab import dashboard
from gradstab.events import EventWriter, layer_tags, read_events, read_records
from gradstab.report import digest as d
from gradstab.report.history import HEATMAP, PROFILE, PROFILES, History, Pictures, profiles, tensorboard_images

TAGS = layer_tags(["hidden"] * 4 + ["output"])


def _fed(steps: int, columns: int = 16, every: int = 10) -> tuple[History, np.ndarray]:
    values = np.exp(np.random.default_rng(steps).normal(size=(steps, 5), scale=3))
    if steps > 60:
        values[31, 2], values[55, 3] = math.inf, math.nan
    history = History(TAGS, columns)
    for step, row in enumerate(values):
        history.observe(step, {}, {"grad_norm": row} | ({"signal_grad_norm": row} if step % every == 0 else {}))
    return history, values


@pytest.mark.parametrize("columns", [16, 15, 2])
@pytest.mark.parametrize("steps", [1, 2, 15, 16, 17, 33, 100, 1000])
def test_columns_hold_the_largest_of_their_steps(steps: int, columns: int) -> None:
    history, values = _fed(steps, columns)
    made = history.heatmap()
    assert made.log10.shape[1] <= columns
    assert (made.edges[0], made.edges[-1]) == (-0.5, steps - 0.5)
    assert (np.diff(made.edges) > 0).all()
    for column, (start, end) in enumerate(zip(np.ceil(made.edges), np.ceil(made.edges[1:]), strict=False)):
        chunk = values[int(start) : int(end)]
        for layer in range(5):
            if np.isnan(chunk[:, layer]).any():
                assert made.kind[layer, column] == d.NOT_A_NUMBER
            elif np.isinf(chunk[:, layer]).any():
                assert made.kind[layer, column] == d.INFINITE
            else:
                assert made.log10[layer, column] == pytest.approx(math.log10(chunk[:, layer].max()))


def test_columns_of_every_tenth_step_stand_at_their_steps() -> None:
    history = History(TAGS)
    for step in range(0, 100, 10):
        history.observe(step, {}, {"grad_norm": np.ones(5)})
    made = history.heatmap()
    assert made.edges.tolist() == list(range(-5, 105, 10))
    assert made.even


@pytest.mark.parametrize("steps", [1, 10, 11, 200, 3000])
def test_profiles_kept_are_few_and_hold_the_first_and_the_latest(steps: int) -> None:
    history, values = _fed(steps)
    measured = list(range(0, steps, 10))
    kept = [step for step, _ in history.signal]
    assert len(kept) <= PROFILES
    assert kept[0] == 0
    assert kept[-1] == measured[-1]
    assert kept == sorted(set(kept))
    for step, profile in history.signal:
        np.testing.assert_array_equal(profile, values[step])
    if len(measured) > PROFILES:
        assert len(kept) > PROFILES // 3
        assert max(np.diff(kept)) <= 4 * 10 * math.ceil(len(measured) / PROFILES)


def test_memory_does_not_grow_with_the_run() -> None:
    def size(history: History) -> int:
        arrays = [value for value in vars(history).values() if isinstance(value, np.ndarray)]
        return sum(array.nbytes for array in arrays) + sum(sys.getsizeof(p) for _, p in history.signal)

    assert size(_fed(4000)[0]) <= size(_fed(400)[0]) * 1.5


def test_pictures_come_as_png_with_their_sizes_and_a_bounded_number_of_tags() -> None:
    history, _ = _fed(100)
    drawn = tensorboard_images(history, {"signal_grad_norm": [0.1, 0.2, 0.5, 1.0]})
    assert set(drawn) == {HEATMAP, PROFILE}
    for image in drawn.values():
        assert image.png.startswith(b"\x89PNG")
        assert struct.unpack(">II", image.png[16:24]) == (image.width, image.height)
        assert image.width > 300
    assert tensorboard_images(History(TAGS), None) == {}


def test_tensorboard_reads_pictures_and_the_profile_over_layers(tmp_path: Path) -> None:
    history, values = _fed(30)
    shown = profiles(history, {"signal_grad_norm": [0.1, 0.2, 0.5, 1.0]})
    writer = EventWriter(tmp_path, TAGS)
    writer.write(29, {"train/loss": 1.0}, {"grad_norm": values[-1]})
    writer.write_summary(dashboard.image(PROFILE, b"\x89PNG", 3, 2), 29)
    for layer, summary in enumerate(dashboard.depth_profile(shown)):
        writer.write_summary(summary, layer)
    writer.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [event.step for event in read.Scalars("train/loss")] == [29]
    (image,) = read.Images(PROFILE)
    assert (image.encoded_image_string, image.width, image.height, image.step) == (b"\x89PNG", 3, 2, 29)
    last = read.Scalars(f"{dashboard.DEPTH_PROFILE}last")
    assert [event.step for event in last] == list(range(5))
    assert [event.value for event in last] == pytest.approx(np.log10(values[20]).tolist(), rel=1e-6)
    theory = [event.value for event in read.Scalars(f"{dashboard.DEPTH_PROFILE}theory")]
    assert theory == pytest.approx(np.log10(np.array([0.1, 0.2, 0.5, 1.0]) * values[0, 3]).tolist(), rel=1e-6)
    assert len([tag for tag in read_records(tmp_path).scalars if tag.startswith(dashboard.DEPTH_PROFILE)]) == 3


def test_an_observed_run_ends_with_two_pictures_and_one_chart(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path, TAGS)
    pictures = Pictures(writer, TAGS, {"reason": "none"}, after=100)
    for step in range(12):
        pictures.observe(step, {}, {"grad_norm": np.ones(5)} | ({"signal_grad_norm": np.ones(5)} if step == 0 else {}))
    pictures.finish()
    writer.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert set(read.Tags()["images"]) == {HEATMAP, PROFILE}
    assert [event.step for event in read.Images(HEATMAP)] == [11]
    assert set(read.Tags()["scalars"]) == {f"{dashboard.DEPTH_PROFILE}{name}" for name in ("first", "last")}


def test_a_run_that_measured_nothing_ends_without_pictures(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path, TAGS)
    Pictures(writer, TAGS, None, after=1).finish()
    writer.close()
    assert len(list(read_events(writer.path))) == 1


def test_zero_inf_and_nan_have_their_logarithms() -> None:
    summaries = dashboard.depth_profile({"x": [0.0, math.inf, math.nan, 100.0]})
    written = [summary.value[0].simple_value for summary in summaries]
    assert written[:2] == [-math.inf, math.inf]
    assert math.isnan(written[2])
    assert written[3] == pytest.approx(2)


def test_drawing_waits_and_then_waits_longer(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path, TAGS)
    pictures = Pictures(writer, TAGS, None, after=20)
    for step in range(160):
        pictures.observe(step, {}, {"grad_norm": np.ones(5)})
    pictures.finish()
    writer.close()
    # All of them: by itself it keeps four.
    read = EventAccumulator(str(tmp_path), {IMAGES: 0})
    read.Reload()
    # After 20, 40, 80 and 160 steps; the last is the end too, and is not drawn twice.
    assert [event.step for event in read.Images(HEATMAP)] == [19, 39, 79, 159]
