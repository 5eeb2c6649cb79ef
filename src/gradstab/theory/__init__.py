"""Mean-field theory of wide networks at initialisation: what lengths, correlations and gradients are to be expected.

Nothing in this package imports torch.
"""

from gradstab.theory.activations import Activation, activation
from gradstab.theory.batchnorm import batch_norm_rate, layer_norm_rate
from gradstab.theory.critical import CriticalPoint, critical_line, critical_point, half_stable_point
from gradstab.theory.errors import NoTheory
from gradstab.theory.fixed_points import DepthScales, FixedPoint, depth_scales, fixed_points
from gradstab.theory.lenet import predict_lenet5, window_correlation
from gradstab.theory.maps import chi_1, chi_c, chi_parallel, correlation_map, length_map
from gradstab.theory.network import predict
from gradstab.theory.prediction import Prediction

__all__ = [
    "Activation",
    "CriticalPoint",
    "DepthScales",
    "FixedPoint",
    "NoTheory",
    "Prediction",
    "activation",
    "batch_norm_rate",
    "chi_1",
    "chi_c",
    "chi_parallel",
    "correlation_map",
    "critical_line",
    "critical_point",
    "depth_scales",
    "fixed_points",
    "half_stable_point",
    "layer_norm_rate",
    "length_map",
    "predict",
    "predict_lenet5",
    "window_correlation",
]
