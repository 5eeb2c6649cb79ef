"""The prediction for a whole multilayer perceptron, layer by layer along its actual trajectory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from gradstab.theory.activations import Activation, Array, activation
from gradstab.theory.amplification import notes_on_width
from gradstab.theory.arguments import check_network, checked_knobs, lengths_of
from gradstab.theory.batches import DEEPEST, FOLLOWED, Batch, check_batches, corrections
from gradstab.theory.errors import NoTheory
from gradstab.theory.prediction import Prediction, assemble, passed_on
from gradstab.theory.quadrature import gaussian_expectation
from gradstab.theory.trajectory import Forward, branch_scale, trajectory
from gradstab.theory.unit import EPS, BatchNormBefore, build_unit, phi_variance
from gradstab.theory.variances import Fan, Variances, layer_variances

# BatchNorm's eps is left out of its theory: rates are 2 % off at three times as much, up to 12 % at as much.
_LEAST_VARIANCE = 3 * EPS
# Over so few units that are left at work, depth factors were 2 to 7 % off (10 to 20 layers).
_FEW = 60
# Masks at rate p let lengths scatter by √(p/(1-p)/N), which moves smooth unbounded φ: softplus over 128 units at 0.5 by
# 5 %, SiLU over 1,000 at 0.9 by 2.5, at 0.7 by 1.4, at 0.5 by 0.4; ReLU and tanh by 1 and 0.2 at most.
_FEW_MASKED = 430
# Over so few units that have a slope: measured were 45 % for one, 8 % for 2.5, and 0.3 % for 25.
_FEW_STEEP, _FLAT = 10, 0.1
_LONGEST = 1e100
# Layers this many times wider than a batch are at most half a percent off.
_WIDE = 10


def predict(
    *,
    act: str,
    widths: Sequence[int],
    q0: ArrayLike,
    init: str = "default",
    act_knobs: Mapping[str, float] | None = None,
    init_knobs: Mapping[str, float] | None = None,
    norm: str = "none",
    norm_position: str | None = None,
    dropout: float = 0.0,
    residual: str = "none",
    bias: bool = True,
    batch_size: int | None = None,
    c0: float = 0.0,
    batches: Sequence[Batch] = (),
) -> Prediction:
    """Lengths, slopes and gradient norms of a deep_mlp at initialisation, in training mode.

    The names are those of gradstab's config; ``widths`` lists all of them, inputs and outputs included. ``q0`` is
    the inputs' mean square ‖x‖²/N_0, or an array of one for each sample: then the squared gradient norms are
    averaged over samples, of which the means over equal parts stand for many (32 up to 50 layers, fewer in deeper
    ones). ``batch_size`` (None: infinite) and ``c0``, two inputs' mean ⟨x, x'⟩/N_0 over q0, matter to BatchNorm alone,
    which takes all samples as equally correlated and alike in length, but for what it is shown of the data in
    ``batches`` (:mod:`gradstab.theory.batches`), of 4 to 256 samples [B, N_0] each.

    q^1 = σ_w² q0 + σ_b²; q^{l+1} = [q^l] + s² (σ_w² forward(q^l) + σ_b²);
    E‖δ^l‖² = ([1] + s² σ_w² backward(q^l)) E‖δ^{l+1}‖². What is in brackets is a residual block's stream, on which δ
    is then the gradient; s is 1 without. σ_w² is fan_in times the variance of W^{l+1}, which covers unequal widths.
    (Schoenholz et al. 2017, arXiv:1611.01232; Yang & Schoenholz 2017, arXiv:1712.08969; Yang et al. 2019,
    arXiv:1902.08129)

    Raises :class:`NoTheory` where there is none, ValueError for what cannot be.
    """
    check_network(widths, dropout, norm, norm_position, batch_size, c0)
    act_knobs, init_knobs = checked_knobs("act_knobs", act_knobs), checked_knobs("init_knobs", init_knobs)
    fans = [Fan(fan_in, fan_out) for fan_in, fan_out in pairwise(widths)]
    if (depth := len(fans) - 1) < 1:
        raise NoTheory("depth=0: there is no hidden layer to predict anything about")
    phi = activation(act, **act_knobs)
    unit = build_unit(phi, norm, norm_position, batch_size, dropout)
    check_batches(batches, int(widths[0]))
    drawn = layer_variances(init, init_knobs, fans, act=act, act_knobs=act_knobs, dropout=dropout, bias=bias)
    lengths = lengths_of(q0, depth)
    if norm == "batch":
        lengths = lengths.mean(keepdims=True)
    blocks = depth - 1 if residual != "none" else 0
    scale = branch_scale(residual, blocks)
    with np.errstate(all="ignore"):  # A prediction beyond double precision is inf or NaN, or has a note.
        if init == "lsuv" and dropout:
            plain = build_unit(phi, norm, norm_position, batch_size, 0.0)
            known, q = _measured_without_dropout(drawn, plain.forward, dropout, lengths, blocks, scale)
        else:
            known, q = trajectory(drawn, [unit.forward] * depth, lengths, blocks, scale)
        argument = q
        if isinstance(unit, BatchNormBefore):
            argument = _batch_variances(unit, known, lengths * (1 - c0), blocks, scale)
        narrowest = min(widths[1:-1])
        notes = (
            *_notes(norm, init, scale, float(argument.min()), batch_size, narrowest),
            *_note_on_alike(norm, bool(batches), depth),
            *_note_on_few(phi, narrowest, dropout),
            *_note_on_flat(phi, float(q.max()) if norm == "none" else 0.0, narrowest * (1 - dropout)),
        )
        backward = _once(unit.backward, argument)
        if isinstance(unit, BatchNormBefore):
            backward = _through_batches(phi, unit, batches, argument, known, blocks, scale)
        slope, seen = _once(unit.forward_slope, q), phi_variance(norm, norm_position, q)
        found = assemble(known, q, slope, backward, blocks, scale, phi_variance=seen, notes=notes)
        if norm == "batch" or init == "lsuv":  # Both take every layer's length as it turns out.
            return found
        longest = float(np.max(q0)) / float(lengths.max()) if lengths.any() else 1.0
        passed = passed_on(known, q, slope, blocks, scale)
        more = notes_on_width(found, passed, unit.backward, widths[1:-1], blocks, longest)
        return replace(found, notes=(*notes, *more))


def _measured_without_dropout(
    drawn: Sequence[Variances], forward: Forward, rate: float, lengths: Array, blocks: int, scale: float
) -> tuple[list[Variances], Array]:
    """The trajectory under dropout of what lsuv scales by lengths without: both are followed at once."""
    squares = np.repeat([1.0, 1 / (1 - rate)], lengths.size)

    def both(q: Array) -> Array:
        found: Array = forward(q) * squares
        return found

    known, q = trajectory(drawn, [both] * (len(drawn) - 1), np.tile(lengths, 2), blocks, scale, lengths.size)
    return known, q[:, lengths.size :]


def _once(f: Forward, q: Array) -> Array:
    """f(q), each value taken once: a deep network at rest has the same length in most of its layers."""
    values, where = np.unique(q, return_inverse=True)
    return f(values)[where].reshape(q.shape)


def _batch_variances(
    unit: BatchNormBefore, known: Sequence[Variances], inputs: Array, blocks: int, scale: float
) -> Array:
    """The variance over the batch of each hidden layer's pre-activation; biases shift a whole batch and add nothing."""
    weights = [Variances(v.sigma_w2, 0.0) for v in known]
    return trajectory(weights, [unit.forward_variance] * (len(known) - 1), inputs, blocks, scale)[1]


def _through_batches(
    phi: Activation,
    unit: BatchNormBefore,
    batches: Sequence[Batch],
    variance: Array,
    known: Sequence[Variances],
    blocks: int,
    scale: float,
) -> Array:
    """Each unit's factor on the squared gradient norm, from the outputs down, in the shape of ``variance``.

    At the outputs samples' gradients are independent; what comes through a unit adds up to 0 over the batch. What sets
    ``batches`` apart from equally correlated samples comes on top.
    """
    own, cross = (part.ravel() for part in unit.parts(variance))
    factors, share = np.empty_like(own), 0.0
    for layer in reversed(range(len(own))):
        factors[layer] = own[layer] - share * cross[layer]
        branch = factors[layer] * known[layer + 1].sigma_w2 * (scale**2 if layer < blocks else 1.0)
        through = branch / (1 + branch) if layer < blocks and branch < math.inf else 1.0
        share = (1 - through) * share - through
    factors *= corrections(phi, batches, known, variance.item(0), blocks, scale, unit.rate, EPS)
    return factors.reshape(variance.shape)


def _note_on_alike(norm: str, shown: bool, depth: int) -> Iterator[str]:
    """A line where batch norm's samples are taken for more alike than those of data are."""
    if norm == "batch" and (not shown or depth > DEEPEST):
        yield "norm=batch: inputs are taken as equally long and correlated, as real data are only some layers up"
    elif norm == "batch" and depth > FOLLOWED:
        yield (
            f"norm=batch: from layer {FOLLOWED} on, samples are taken as equally correlated, "
            "and gradients as independent of their classes"
        )


def _note_on_few(phi: Activation, narrowest: int, dropout: float) -> Iterator[str]:
    """A line where so few units are left at work that they are no wide layer."""
    left = narrowest * (1 - dropout)
    moved = phi.scale_free is None and not phi.odd and left < _FEW_MASKED * dropout
    if left < _FEW or moved:
        masked = f", of which dropout={dropout:g} leaves {left:.3g}," if dropout else ""
        yield f"widths: theory is of wide layers; of {narrowest} units{masked} means may be some percent off"


def _note_on_flat(phi: Activation, longest: float, units: float) -> Iterator[str]:
    """A line where nearly all units are so flat that the gradient is the few others' alone."""
    if not 0 < longest < _LONGEST:
        return

    def powers(x: Array) -> Array:
        squared = phi.slope(x) ** 2
        return np.stack([squared, squared**2])

    squares, fourth = gaussian_expectation(powers, longest, phi.kinks, phi.odd).tolist()
    share = squares**2 / fourth if fourth else 0.0
    if share < _FLAT and units * share < _FEW_STEEP:
        yield (
            f"widths: at mean squares of {longest:.3g}, act={phi.name} has a slope in only about "
            f"{units * share:.2g} of {units:.0f} units; depth factors scatter for it, and may be far off"
        )


def _notes(
    norm: str, init: str, scale: float, smallest: float, batch_size: int | None, narrowest: int
) -> Iterator[str]:
    """What is taken for granted, one line each; raises :class:`NoTheory` where it is too much."""
    if init in ("orthogonal", "delta_orthogonal", "lsuv"):
        yield f"init={init}: taken as independent weights of the same variance, which wide layers cannot tell apart"
    if init == "lsuv":
        yield "init=lsuv: few outputs that are alike for all samples are scaled up, and all δ of other layers with them"
        yield "init=lsuv: its one batch is taken to be like the training set"
    if scale == 0:
        yield "residual=rezero: branches start at 0, so the gradient passes unchanged"
    if norm == "batch":
        if batch_size is not None and narrowest < _WIDE * batch_size:
            yield (
                f"norm=batch: layers are taken as much wider than batches of {batch_size}, not {narrowest}; 60 layers "
                "of 128 for 128 measured 0.4% below the depth factor predicted (relu), 1% (tanh) to 6% (silu) above"
            )
        if batch_size == 4:
            yield "norm=batch: of 4 samples squared gradients have a mean, but no variance, and most draws are below it"
        if smallest < _LEAST_VARIANCE:
            raise NoTheory(
                f"norm=batch: a variance over the batch is as small as {smallest:.1e}, and theory leaves out the "
                f"eps={EPS:g} that BatchNorm adds to it"
            )
        if smallest < 1e3 * EPS:
            yield f"norm=batch: eps={EPS:g} is left out, though a variance over the batch is as small as {smallest:.1e}"
