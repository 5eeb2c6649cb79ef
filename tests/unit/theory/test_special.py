"""The error function and what follows from it, against scipy's."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import special as reference

from gradstab.theory import special


def test_the_error_function_and_the_normal_distribution() -> None:
    x = np.linspace(-25, 25, 4001)
    np.testing.assert_allclose(special.erf(x), reference.erf(x), rtol=1e-15)
    np.testing.assert_allclose(special.erfc(x), reference.erfc(x), rtol=1e-13)
    np.testing.assert_allclose(special.normal_cdf(x), reference.ndtr(x), rtol=1e-12)


def test_square_within_is_an_incomplete_gamma_function() -> None:
    """On both sides of where its series takes over, and at both ends."""
    edge = np.concatenate([[0.0, np.inf], np.geomspace(1e-12, 100, 2001), np.linspace(0.13, 0.15, 201)])
    np.testing.assert_allclose(special.square_within(edge), reference.gammainc(1.5, edge**2), rtol=2e-14)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_arrays_keep_their_shape(shape: tuple[int, ...]) -> None:
    x = np.full(shape, 0.5)
    for function in (special.erf, special.erfc, special.normal_cdf, special.square_within):
        found = function(x)
        assert found.shape == shape
        assert found.dtype == np.float64


def test_a_prediction_imports_no_scipy() -> None:
    """Its import takes longer than the prediction."""
    asked = (("gelu", "critical", "none"), ("erf", "default", "batch"), ("hardtanh", "lsuv", "layer"))
    predictions = "; ".join(
        f"predict(act={act!r}, widths=[64, *[100] * 9, 10], q0=1.0, init={init!r}, norm={norm!r})"
        for act, init, norm in asked
    )
    code = f"import sys; from gradstab.theory import predict; {predictions}; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
