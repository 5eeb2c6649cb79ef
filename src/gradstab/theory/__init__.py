"""Mean-field theory of wide networks at initialisation: what lengths, correlations and gradients are to be expected.

Nothing in this package imports torch.
"""

from gradstab.theory.activations import Activation, activation
from gradstab.theory.batches import SIZE as BATCH
from gradstab.theory.batches import Batch
from gradstab.theory.critical import (
    CriticalPoint,
    caveat,
    critical_line,
    critical_point,
    critical_sigma_w2,
    half_stable_point,
    has_edge,
)
from gradstab.theory.errors import NoTheory
from gradstab.theory.fixed_points import DepthScales, FixedPoint, depth_scales, fixed_points
from gradstab.theory.lenet import predict_lenet5, window_correlation
from gradstab.theory.maps import chi_1, chi_c, chi_parallel, correlation_map, length_map
from gradstab.theory.network import predict
from gradstab.theory.prediction import Prediction
from gradstab.theory.signal import signal_shares
from gradstab.theory.statistics import activation_statistics

__all__ = [
    "BATCH",
    "Activation",
    "Batch",
    "CriticalPoint",
    "DepthScales",
    "FixedPoint",
    "NoTheory",
    "Prediction",
    "activation",
    "activation_statistics",
    "caveat",
    "chi_1",
    "chi_c",
    "chi_parallel",
    "correlation_map",
    "critical_line",
    "critical_point",
    "critical_sigma_w2",
    "depth_scales",
    "fixed_points",
    "half_stable_point",
    "has_edge",
    "length_map",
    "predict",
    "predict_lenet5",
    "signal_shares",
    "window_correlation",
]
