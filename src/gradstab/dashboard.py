"""What makes a run's event file good to look at in TensorBoard: hyperparameters and one chart for all layers."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MultilineChartContent
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

CHARTS = ("grad_norm", "signal_grad_norm", "activation_std")
DEPTH_PROFILE = "depth_profile_log10/"
METRICS = ("test/accuracy", "test/loss", "depth_factor")


def layout() -> Summary:
    """A custom-scalar layout: for some quantities one chart with the lines of all layers, and the losses."""

    def chart(title: str, *tags: str) -> Chart:
        return Chart(title=title, multiline=MultilineChartContent(tag=tags))

    title = "log10 signal grad norm over layers (the axis is the layer's index, not the step)"
    depth = [chart(name.replace("_", " "), rf"^{name}/\d+") for name in CHARTS]
    depth.append(chart(title, f"^{DEPTH_PROFILE}"))
    overall = [
        chart("loss", r"^train/loss$", r"^test/loss$"),
        chart("global gradient norm, before and after clipping", r"^global_grad_norm/"),
    ]
    content = Layout(
        category=[
            Category(title="through depth", chart=depth),
            Category(title="overall", chart=overall),
        ]
    )
    tensor = TensorProto(
        dtype=DT_STRING, string_val=[content.SerializeToString()], tensor_shape=TensorShapeProto(dim=[])
    )
    plugin_data = SummaryMetadata.PluginData(plugin_name="custom_scalars")
    metadata = SummaryMetadata(plugin_data=plugin_data, data_class=DATA_CLASS_TENSOR)
    return Summary(value=[Summary.Value(tag="custom_scalars__config__", tensor=tensor, metadata=metadata)])


def image(tag: str, png: bytes, width: int, height: int) -> Summary:
    """A picture for TensorBoard's Images tab; sizes in pixels."""
    content = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=content)])


def depth_profile(profiles: Mapping[str, Sequence[float]]) -> list[Summary]:
    """log10 of profiles over depth, as scalars whose step is the layer's index: write the i-th summary with ``step=i``.

    TensorBoard's only line charts run over steps; this makes one of them run over layers, in the run itself. Each
    profile is to be written once, since a line cannot be taken back. On a linear axis a vanishing gradient is a line
    along zero; its logarithm is a slope that one can see.
    """
    deepest = max(map(len, profiles.values()), default=0)
    return [
        Summary(
            value=[
                Summary.Value(tag=f"{DEPTH_PROFILE}{name}", simple_value=_log10(values[layer]))
                for name, values in profiles.items()
                if layer < len(values)
            ]
        )
        for layer in range(deepest)
    ]


def _log10(value: float) -> float:
    return math.log10(value) if 0 < value < math.inf else -math.inf if value == 0 else value


def hparams(settings: Mapping[str, Any], differing: Collection[str] = ()) -> list[Summary]:
    """The run's settings and metrics for TensorBoard's HParams tab, to be written into the run's own file.

    Settings named in ``differing`` come first in its table, which shows five to begin with.
    """
    experiment = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=_data_type(value), differs=name in differing)
            for name, value in settings.items()
        ],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in METRICS],
        time_created_secs=time.time(),
    )
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for name, value in settings.items():
        kind = _data_type(value)
        if kind == api_pb2.DATA_TYPE_BOOL:
            start.hparams[name].bool_value = value
        elif kind == api_pb2.DATA_TYPE_FLOAT64:
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = str(value)
    return [
        _hparams_summary("experiment", plugin_data_pb2.HParamsPluginData(experiment=experiment)),
        _hparams_summary("session_start_info", plugin_data_pb2.HParamsPluginData(session_start_info=start)),
    ]


def hparams_end(succeeded: bool) -> Summary:
    """Marks the run's row in the HParams tab as ended."""
    status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    return _hparams_summary("session_end_info", plugin_data_pb2.HParamsPluginData(session_end_info=end))


def _data_type(value: Any) -> Any:
    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_FLOAT64 if isinstance(value, int | float) else api_pb2.DATA_TYPE_STRING


def _hparams_summary(name: str, data: Any) -> Summary:
    data.version = 0
    plugin_data = SummaryMetadata.PluginData(plugin_name="hparams", content=data.SerializeToString())
    metadata = SummaryMetadata(plugin_data=plugin_data, data_class=DATA_CLASS_TENSOR)
    null = TensorProto(dtype=1, tensor_shape=TensorShapeProto(dim=[]), float_val=[0.0])
    return Summary(value=[Summary.Value(tag=f"_hparams_/{name}", tensor=null, metadata=metadata)])
