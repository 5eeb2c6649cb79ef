"""The event file: what was written comes back, TensorBoard's own reader agrees, and a cut file reads up to the cut."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE
from tensorboard.util import tensor_util

from gradstab import dashboard
from gradstab.config import flat
from gradstab.encoding import Encoder
from gradstab.events import EventWriter, layer_tags, read_events, read_records
from gradstab.wording import shown_layers

TAGS = ["00_hidden", "01_hidden", "02_output"]


def _written(folder: Path, steps: int = 5) -> Path:
    writer = EventWriter(folder, TAGS)
    for step in range(steps):
        vector = np.array([1e-300 * (step + 1), math.inf, math.nan])
        writer.write(step, {"train/loss": 0.5 / (step + 1)}, {"grad_norm": vector, "activation_std": vector[:2]})
    writer.close()
    return writer.path


def test_round_trip_with_inf_and_nan(tmp_path: Path) -> None:
    _written(tmp_path)
    records = read_records(tmp_path)
    assert records.layers == TAGS
    assert records.scalars["train/loss"].steps.tolist() == [0, 1, 2, 3, 4]
    assert records.scalars["train/loss"].values.tolist() == pytest.approx([0.5 / (s + 1) for s in range(5)])
    norms = records.vectors["grad_norm"].values
    assert norms.shape == (5, 3)
    assert norms[:, 0].tolist() == [1e-300 * (s + 1) for s in range(5)]
    assert np.isposinf(norms[:, 1]).all()
    assert np.isnan(norms[:, 2]).all()
    assert records.vectors["activation_std"].values.shape == (5, 2)
    assert math.isinf(records.scalars["grad_norm/01_hidden"].values[0])


def test_tensorboards_own_reader_agrees(tmp_path: Path) -> None:
    path = _written(tmp_path)
    events = list(LegacyEventFileLoader(str(path)).Load())
    assert [e.step for e in events] == [0, 0, 1, 2, 3, 4]
    assert events[0].file_version == "brain.Event:2"
    values = {value.tag: value for value in events[1].summary.value}
    assert values["train/loss"].simple_value == 0.5
    array = tensor_util.make_ndarray(values["layers/grad_norm"].tensor)
    assert array[0] == 1e-300
    assert values["layers/grad_norm"].metadata.plugin_data.plugin_name == "gradstab"


def test_a_file_cut_anywhere_reads_up_to_the_cut(tmp_path: Path) -> None:
    path = _written(tmp_path, steps=3)
    whole = path.read_bytes()
    total = len(list(read_events(path)))
    assert total == 4
    counts = []
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        counts.append(len(list(read_events(path))))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-2:] == [3, 4]


def test_a_damaged_record_ends_the_reading(tmp_path: Path) -> None:
    path = _written(tmp_path, steps=3)
    data = bytearray(path.read_bytes())
    data[-30] ^= 0xFF
    path.write_bytes(bytes(data))
    assert len(list(read_events(path))) == 3
    assert len(read_records(tmp_path).scalars["train/loss"].steps) == 2


def test_tags_sort_by_depth() -> None:
    tags = layer_tags(["hidden"] * 1000 + ["output"])
    assert tags[0] == "0000_hidden"
    assert tags[-1] == "1000_output"
    assert tags == sorted(tags)
    assert layer_tags(["C1", "output"]) == ["00_C1", "01_output"]


@pytest.mark.parametrize("count", [1, 2, 63, 64])
def test_up_to_64_layers_are_all_shown(count: int) -> None:
    assert shown_layers(count) == list(range(count))


@pytest.mark.parametrize("count", [65, 100, 1001])
def test_beyond_64_layers_evenly_spaced_ones_are_shown(count: int) -> None:
    shown = shown_layers(count)
    assert len(set(shown)) == 64
    assert (shown[0], shown[-1]) == (0, count - 1)
    gaps = np.diff(shown)
    assert gaps.max() - gaps.min() <= 1


def test_tags_stay_few_however_deep_the_network(tmp_path: Path) -> None:
    tags = layer_tags(["hidden"] * 1000)
    writer = EventWriter(tmp_path, tags)
    writer.write(0, {}, {"grad_norm": np.arange(1000.0)})
    writer.close()
    records = read_records(tmp_path)
    assert len(records.scalars) == 64
    assert records.vectors["grad_norm"].values.tolist() == [list(range(1000))]


def test_hyperparameters_go_into_the_same_file(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    settings = flat({"seed": 3, "quiet": False, "act": {"name": "elu", "alpha": 0.5}})
    assert settings == {"seed": 3, "quiet": False, "act": "elu", "act.alpha": 0.5}
    writer = EventWriter(tmp_path, TAGS)
    for summary in [*dashboard.hparams(settings), dashboard.hparams_end(True)]:
        writer.write_summary(summary)
    writer.close()
    content = {
        value.tag: plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in read_events(writer.path)
        for value in event.summary.value
    }
    start = content["_hparams_/session_start_info"].session_start_info
    assert start.hparams["act"].string_value == "elu"
    assert start.hparams["seed"].number_value == 3
    assert start.hparams["quiet"].bool_value is False
    metrics = [info.name.tag for info in content["_hparams_/experiment"].experiment.metric_infos]
    assert metrics == list(dashboard.METRICS)


def test_the_layout_draws_all_layers_in_one_chart() -> None:
    import re

    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    value = dashboard.layout().value[0]
    assert value.tag == "custom_scalars__config__"
    layout = Layout.FromString(value.tensor.string_val[0])
    chart = layout.category[0].chart[0]
    assert all(re.match(chart.multiline.tag[0], f"grad_norm/{tag}") for tag in TAGS)
    assert not re.match(chart.multiline.tag[0], "grad_norm_post_clip/00_hidden")


@pytest.mark.parametrize("step", [0, 1, 127, 128, 300, 16_383, 16_384, 2**31, 2**62])
def test_records_are_what_protobuf_makes_of_them(step: int) -> None:
    count = 70
    encoder = Encoder(layer_tags(["hidden"] * count))
    vector = np.linspace(-1.0, 3.0, count)
    vector[3:6] = math.nan, math.inf, -math.inf
    scalars = {"train/loss": 0.1, "zero": 0.0, "huge": 1e300, "low": -1e300, "inf": math.inf}
    for described in (False, True):
        found = Event.FromString(encoder.encode(step, 12.5, scalars, {"grad_norm": vector, "short": vector[:2]}))
        wanted = Event(wall_time=12.5, step=step)
        largest = float(np.finfo(np.float32).max)
        for tag, value in zip(scalars, (0.1, 0.0, largest, -largest, math.inf), strict=True):
            wanted.summary.value.add(tag=tag, simple_value=value)
        for quantity, values in {"grad_norm": vector, "short": vector[:2]}.items():
            whole = wanted.summary.value.add(tag=f"layers/{quantity}")
            whole.tensor.CopyFrom(
                TensorProto(
                    dtype=DT_DOUBLE, tensor_shape={"dim": [{"size": len(values)}]}, tensor_content=bytes(values)
                )
            )
            for i in shown_layers(len(values)):
                wanted.summary.value.add(tag=f"{quantity}/{i:02d}_hidden", simple_value=values[i])
        assert [value.HasField("metadata") for value in found.summary.value].count(True) == (0 if described else 2)
        for value in found.summary.value:
            value.ClearField("metadata")
        assert found.SerializeToString() == wanted.SerializeToString()
