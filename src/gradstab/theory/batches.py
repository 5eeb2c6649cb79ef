"""BatchNorm over the samples that there are: how their gradient differs from that of equally correlated ones.

Theorem 8 of Yang et al. 2019 (arXiv:1902.08129) is of batches whose samples are all equally correlated, as those of
any data become with depth. What the Gram matrices of real ones do on the way, and those of the gradients, which differ
by class, has no closed form; here they are followed as wide layers make them, by drawing units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradstab.theory.activations import Activation, Array
from gradstab.theory.variances import Variances

# Batches of 128 differ from equally correlated ones as batches of 32 do, within a few tenths of a percent.
SIZE = 32
# The expected squared gradient is infinite below.
LEAST = 4
# So many layers from the inputs are followed; further up samples look alike, but for the gradients of their classes.
FOLLOWED = 24
# Deeper networks' factors hang on their first layers by less than a thousandth.
DEEPEST = 200
_UNITS = 256


@dataclass(frozen=True, eq=False)
class Batch:
    """``inputs`` [B, N_0] and ``errors`` [B, outputs], each sample's own ∂ℓ/∂outputs before training.

    Raises ValueError for what are no two matrices of finite numbers, a row for each sample.
    """

    inputs: Array
    errors: Array

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "inputs", np.asarray(self.inputs, dtype=np.float64))
            object.__setattr__(self, "errors", np.asarray(self.errors, dtype=np.float64))
        except (TypeError, ValueError):
            raise ValueError("batches: inputs and errors have to be matrices of numbers") from None
        inputs, errors = self.inputs.shape, self.errors.shape
        if len(inputs) != 2 or len(errors) != 2 or inputs[0] != errors[0] or not all(inputs):
            raise ValueError(
                f"batches: inputs of shape {list(inputs)} and errors of shape {list(errors)}: have to be two matrices "
                "with a row for each sample"
            )
        if not (np.isfinite(self.inputs).all() and np.isfinite(self.errors).all()):
            raise ValueError("batches: inputs and errors have to be finite")


@dataclass(frozen=True, eq=False)
class _Units:
    """Units drawn over a batch, [units, B]: what φ is applied to, its slopes, and 1/variance of what was normalised."""

    x: Array
    slopes: Array
    precision: Array

    def back(self, gradients: Array) -> Array:
        """The Gram matrix [B, B] of ∂L/∂h from that of ∂L/∂φ, both as means over units.

        ∂L/∂h = (1 - 11ᵀ/B - xxᵀ/B) φ'·∂L/∂φ / √variance, with gradients that are independent of x.
        """
        units, size = self.x.shape
        weighted = self.x * self.precision
        spread = gradients * ((self.slopes * self.precision).T @ self.slopes)
        pulled = self.slopes * ((self.slopes * self.x) @ gradients)
        along = weighted.T @ (pulled - pulled.mean(axis=1, keepdims=True)) / size
        own = (weighted * (self.x * pulled).sum(axis=1, keepdims=True)).T @ self.x / size**2
        found: Array = (_centred(spread) - along - along.T + own) / units
        return found


def check_batches(batches: object, numbers: int) -> None:
    """Raises ValueError for what is no list of batches of 4 to 256 samples of so many ``numbers``."""
    if not isinstance(batches, Sequence) or not all(isinstance(batch, Batch) for batch in batches):
        raise ValueError(f"batches={type(batches).__name__}: has to be a list of gradstab.theory.Batch")
    for rows, columns in (batch.inputs.shape for batch in batches):
        # Of more samples than units are drawn there is no root; of fewer, no expectation.
        if columns != numbers or not LEAST <= rows <= _UNITS:
            raise ValueError(
                f"batches: inputs of shape [{rows}, {columns}]: have to be {LEAST} to {_UNITS} samples "
                f"of {numbers} numbers"
            )


def corrections(
    act: Activation,
    batches: Sequence[Batch],
    known: Sequence[Variances],
    variance: float,
    blocks: int,
    scale: float,
    dropout: float,
    eps: float,
) -> Array:
    """The factor on each hidden layer's ``BatchNormBefore.backward`` that real batches make, [layers]; 1 where unknown.

    ``known`` are the layers' variances, the output layer's included, and ``variance`` that of equally correlated
    samples' first pre-activations over the batch. Both kinds of batch are followed through the same random units
    (always the same ones), so that what comes of their number cancels, and where batches are alike the factor is 1.
    """
    layers = len(known) - 1
    found = np.ones(layers)
    count = 0 if layers > DEEPEST else min(FOLLOWED, layers)
    if not count or not batches:
        return found
    random = np.random.default_rng(0)
    logs = np.zeros(count)
    for batch in batches:
        size = len(batch.inputs)
        masked = 1 + np.eye(size) * dropout / (1 - dropout)
        draws = _whitened(random.standard_normal((count, _UNITS, size)))
        network = _Followed(act, known, blocks, scale, masked, draws)
        own = batch.inputs @ batch.inputs.T / batch.inputs.shape[1]
        alike = np.eye(size) * variance / (known[0].sigma_w2 or 1.0)
        above = np.eye(size) if count == layers else _centred(np.eye(size))
        classes = batch.errors @ batch.errors.T if count == layers and batch.errors.any() else above
        logs += np.log(network.branches(own, classes, eps) / network.branches(alike, above, 0.0))
    if np.isfinite(logs).all():
        found[:count] = np.exp(logs / len(batches))
    return found


@dataclass(frozen=True, eq=False)
class _Followed:
    """A network's first layers, and the normal variables [layers, units, B] that their units are made of.

    ``masked`` is what dropout makes of a Gram matrix, entry by entry.
    """

    act: Activation
    known: Sequence[Variances]
    blocks: int
    scale: float
    masked: Array
    draws: Array

    def branches(self, inputs: Array, above: Array, eps: float) -> Array:
        """The factor on squared gradients from each layer's φ down to its h, for σ_w² = 1, [layers].

        ``inputs`` is the Gram matrix [B, B] of the inputs, over their number, and ``above`` that of the gradients above
        the topmost layer, of any size.
        """
        found = np.empty(len(self.draws))
        for layer, units in reversed(list(enumerate(self._units(inputs, eps)))):
            above = above / np.trace(above)
            below = units.back(above * self.masked)
            found[layer] = np.trace(below)
            if layer < self.blocks:
                below = above + self.scale**2 * (self.known[layer + 1].sigma_w2 or 0.0) * below
            above = below
        return found

    def _units(self, gram: Array, eps: float) -> list[_Units]:
        """Each layer's units, from the Gram matrix of the inputs on."""
        found, stream = [], np.zeros_like(gram)
        for layer, (v, drawn) in enumerate(zip(self.known, self.draws, strict=False)):
            branch = (v.sigma_w2 or 0.0) * gram
            stream = stream + self.scale**2 * branch if 1 <= layer <= self.blocks else branch
            found.append(_normalised(self.act, drawn @ _root(_centred(stream)), eps))
            outputs = self.act.phi(found[-1].x)
            gram = self.masked * (outputs.T @ outputs) / len(outputs)
        return found


def _normalised(act: Activation, h: Array, eps: float) -> _Units:
    precision = 1 / (np.square(h).mean(axis=1, keepdims=True) + eps)
    x = h * np.sqrt(precision)
    return _Units(x, act.slope(x), precision)


def _whitened(draws: Array) -> Array:
    """Normal variables [layers, units, B] whose second moments over units are exact: as good as twice as many."""
    values, vectors = np.linalg.eigh(np.swapaxes(draws, 1, 2) @ draws / draws.shape[1])
    found: Array = draws @ ((vectors / np.sqrt(values)[:, None, :]) @ np.swapaxes(vectors, 1, 2))
    return found


def _centred(gram: Array) -> Array:
    """The Gram matrix of what is left without the mean over the batch."""
    centred: Array = gram - gram.mean(axis=0) - gram.mean(axis=1, keepdims=True) + gram.mean()
    return centred


def _root(matrix: Array) -> Array:
    """The symmetric square root of a Gram matrix; one that has overflowed stays as it is."""
    if not np.isfinite(matrix).all():
        return matrix
    values, vectors = np.linalg.eigh(matrix)
    root: Array = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root
