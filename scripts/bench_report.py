"""What a report costs: runs written by EventWriter itself, then reported on by ``gradstab report``.

python scripts/bench_report.py [--runs 200] [--steps 10000] [--layers 50]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gradstab.events import EventWriter, layer_tags
from gradstab.report.history import History, tensorboard_images

QUANTITIES = ("grad_norm", "signal_grad_norm", "weight_norm", "update_ratio", "activation_mean", "activation_std")


def write_run(folder: Path, steps: int, layers: int, measured_every: int, seed: int) -> int:
    """One synthetic run, every quantity at every measured step and ``grad_norm`` at all; returns its bytes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tags = layer_tags(["hidden"] * (layers - 1) + ["output"])
    slope = np.exp(rng.uniform(-0.5, 0.3) * np.arange(layers)[::-1])
    writer = EventWriter(folder, tags)
    for step in range(steps):
        noise = np.exp(0.3 * rng.standard_normal((len(QUANTITIES), layers)))
        names = QUANTITIES if step % measured_every == 0 else QUANTITIES[:1]
        vectors = {name: (noise[i] * slope)[: layers - name.startswith("activation")] for i, name in enumerate(names)}
        total = float(np.linalg.norm(vectors["grad_norm"]))
        scalars = {"train/loss": 2.3 / (1 + step / 500), "global_grad_norm/pre_clip": total}
        writer.write(step, scalars | {"global_grad_norm/post_clip": min(total, 1.0)}, vectors)
        if step % 500 == 499:
            writer.write(step + 1, {"test/loss": 1.0, "test/accuracy": 0.5}, {})
    writer.close()
    record = {"status": "completed", "steps": steps, "layers": tags, "test_accuracy": 0.5, "seconds": 1.0}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(
        f"seed: {seed}\nsteps: {steps}\nmodel:\n  name: deep_mlp\n  depth: {layers - 1}\n"
    )
    return writer.path.stat().st_size


def report(folder: Path, *flags: str) -> tuple[float, float, float]:
    """Seconds, MB of the page and peak MB of memory of one ``gradstab report`` in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "gradstab", "report", str(folder), *flags], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return seconds, (folder / "report.html").stat().st_size / 1e6, peak / 1e3


def images(layers: int) -> tuple[float, float]:
    """Seconds per step that feeding a History costs, and per pair of pictures for TensorBoard."""
    rng = np.random.default_rng(0)
    history = History(layer_tags(["hidden"] * layers))
    steps = 5000
    vectors = [{name: np.exp(rng.standard_normal(layers)) for name in QUANTITIES[:2]} for _ in range(100)]
    started = time.perf_counter()
    for step in range(steps):
        history.observe(step, {}, vectors[step % 100])
    fed = (time.perf_counter() - started) / steps
    tensorboard_images(history, None)
    drawn = []
    for _ in range(7):
        started = time.perf_counter()
        tensorboard_images(history, None)
        drawn.append(time.perf_counter() - started)
    return fed, float(np.median(drawn))


def main() -> None:
    """Print the figures, one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=50)
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        one = Path(scratch) / "one"
        size = write_run(one, options.steps, options.layers, 1, 0)
        what = f"{options.steps:,} steps × {options.layers} layers × {len(QUANTITIES)} quantities, {size / 1e6:.0f} MB"
        for flags in ((), ("--csv",), ("--parquet",), ("--figures", "png,svg,pdf")):
            seconds, page, peak = report(one, *flags)
            print(f"one run, {what}: report {' '.join(flags)} {seconds:.1f} s, page {page:.2f} MB, peak {peak:.0f} MB")
        sweep = Path(scratch) / "sweep"
        sizes = [write_run(sweep / f"{i:03d}_seed={i}", 1000, 20, 100, i) for i in range(options.runs)]
        seconds, page, peak = report(sweep)
        what = f"1,000 steps × 20 layers, {sum(sizes) / 1e6:.0f} MB"
        print(f"sweep of {options.runs} runs, {what}: report {seconds:.1f} s, page {page:.1f} MB, peak {peak:.0f} MB")
    for layers in (50, 1000):
        fed, drawn = images(layers)
        print(f"TensorBoard, {layers} layers: {1e6 * fed:.0f} µs a step to observe, {drawn:.2f} s for both pictures")


if __name__ == "__main__":
    main()
