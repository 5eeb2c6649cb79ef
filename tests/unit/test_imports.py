"""The house's rules that a machine can see: imports run one way, sizes stay small, torch stays out of the way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gradstab

SOURCE = Path(gradstab.__file__).parent
# From the bottom up: a module may import what stands on an earlier line, or beside it on its own line.
LAYERS = [
    {"errors", "files", "wording"},
    {"config", "memory", "capacity", "eager", "coordinate_descent", "interrupts", "plain"},
    {
        "activations",
        "reproducibility",
        "determinism",
        "run_directory",
        "claims",
        "checkpoint",
        "decoding",
        "encoding",
        "framing",
        "events",
        "measure.quantities",
        "theory",
        "spectra",
        "step_scale",
        "measure.broken",
        "measure.depth",
        "measure.verdict",
    },
    {
        "models",
        "measure.losses",
        "measure.rules",
        "measure.step_rules",
        "measure.diagnosis",
        "measure.afterwards",
        "measure.symmetry",
    },
    {
        "initializers",
        "batching",
        "data",
        "losses",
        "optimizers",
        "schedules",
        "clipping",
        "constraints",
        "dashboard",
        "catalogue",
    },
    {"evaluation", "measure.probe", "inputs", "expectation", "asymptotics", "jacobians"},
    {"paths", "rates", "candidates", "remedies"},
    {"measure.recorder"},
    {"parts", "progress"},
    {"training", "forensics"},
    {
        "console",
        "assembly",
        "examination",
        "draws",
        "probing",
        "report",
        "monitor",
        "session",
        "replay",
        "catching",
        "explaining",
        "record",
    },
    {"runner"},
    {"launchers"},
    {"sweeps"},
    {"cli"},
    {"__main__", ""},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(SOURCE.rglob("*.py"))


def _unit(dotted: str) -> str:
    """The name a module has in LAYERS: packages count as one, except measure, which spans several layers."""
    parts = dotted.split(".")
    return ".".join(parts[:2]) if parts[0] == "measure" and len(parts) > 1 else parts[0]


def _module(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.removeprefix("gradstab.") for name in found if name.startswith("gradstab.")}
    return {_unit(name) for name in ours if name != "__version__"}


def test_all_modules_were_found() -> None:
    assert len(MODULES) > 30
    assert {_unit(_module(path)) for path in MODULES} - {"measure"} == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=_module)
def test_imports_run_one_way(path: Path) -> None:
    own = _unit(_module(path))
    if own == "measure":
        return
    for other in _imported(path):
        assert LEVEL[other] <= LEVEL[own], f"{own} may not import {other}"


@pytest.mark.parametrize("path", MODULES, ids=_module)
def test_only_config_and_cli_know_hydra(path: Path) -> None:
    if _unit(_module(path)) in ("config", "cli"):
        return
    names = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not any(name == "hydra" or name.startswith("hydra.") for name in names)


@pytest.mark.parametrize("path", MODULES, ids=_module)
def test_modules_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 250
    limits = {"train_step": 40, "fit": 60}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1 - (ast.get_docstring(node) or "").count("\n")
            assert lines <= limits.get(node.name, 60), node.name


@pytest.mark.parametrize("module", ["gradstab.cli", "gradstab.config", "gradstab.catalogue"])
def test_torch_is_not_imported_by(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_does_not_import_torchs_compiler(tmp_path: Path) -> None:
    code = (
        "import sys; from gradstab.cli import main; "
        "code = main(['train', 'steps=2', 'model.depth=2', 'device=cpu', 'schedule=cosine', 'quiet=true']); "
        "sys.exit(code or 'torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path).returncode == 0


def test_torchvision_is_imported_only_for_its_data_sets() -> None:
    code = (
        "import sys; from gradstab import runner; from gradstab.data import load_data; load_data('digits'); "
        "sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
