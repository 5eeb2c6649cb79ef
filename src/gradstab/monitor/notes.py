"""The lines in which a monitor says what it cannot see."""

from __future__ import annotations

from torch import nn

from gradstab.monitor.gradients import WatchedNorms

COMPILED = (
    "the network is compiled, and hooks inside it would not run: of its layers, only gradient norms, weight norms and "
    "update ratios are measured"
)
NORMS_ALONE = (
    "every=None: gradient norms alone were measured, and neither δ nor activations or updates, which most of the "
    "verdict's rules look at"
)
UNSEEN = (
    "no layer's forward pass was seen, as if the network were compiled or another one: of its layers, only gradient "
    "norms, weight norms and update ratios are measured"
)
NO_GRADIENT = (
    "all gradients are missing or 0 at step {step}: step(loss) belongs after backward() and before zero_grad(); where "
    "optimizers step within backward(), no norms are known"
)
NOT_IN_SERIES = (
    "not all layers stand in series (branches, heads, several networks or optimizers): the gradient over depth is "
    "taken along the longest chain, {count} of {whole} layers"
)
NO_TRUNK = (
    "skip paths lead past all but {count} of the {whole} layers in series, and nothing was seen to go into a branch (a "
    "module that is a block, its norm or its first layer) that all of them pass: no rule on depth can be applied"
)
THROUGH_TIME = (
    "{names}: the gradient through time, from step to step of a sequence, is not measured, and a verdict has no word "
    "on it"
)
IDLE = (
    "the optimizer has not stepped for some steps: if another one moves the network now, tell of it with "
    "follow(optimizer), or learning rates and norms after clipping are not its own"
)
RARE = (
    "an optimizer had no turn among {steps} measured steps in a row: of its layers, all quantities are known only "
    "where its turns happen to be measured steps; every=1 measures all"
)
REFUSED = (
    "{kind}: has no slope that can be asked for ({why}), so of the layers before it no activations are measured; "
    "allowed in activations: classes whose forward(h) alone gives one tensor of h's shape"
)
SCALED = (
    "gradients are divided by {factor:.6g} before every update, a power of two, as a GradScaler does: norms before it "
    "hold that factor, and what looks like clipping is none; give watch the scaler"
)
EXCHANGED = (
    "the network has other parameters than when watching began ({new} new, {gone} gone): new ones are not measured; "
    "close this monitor, and watch again"
)


def on_depth(norms: WatchedNorms) -> list[str]:
    """What is to be said of the line over depth, along layers that gradients reach, and of what it does not show."""
    count, whole = len(norms.depth), sum(id(norms.layers[i]) in norms.reached for i in norms.alike)
    found = [NOT_IN_SERIES.format(count=count, whole=whole)] * (count < whole)
    found += [NO_TRUNK.format(count=len(norms.trunk), whole=count)] * (len(norms.trunk) < 2 <= count)
    names = [layer.name for layer in norms.layers if isinstance(layer.module, nn.RNNBase)]
    return found + [THROUGH_TIME.format(names=", ".join(names))] * bool(names)
