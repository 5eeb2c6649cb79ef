"""The wheel, unpacked somewhere else, is the whole program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_every_module_and_configuration_and_runs_elsewhere(tmp_path: Path) -> None:
    # A copy, so that no build/ of an earlier day is packed and none is left behind.
    source = tmp_path / "source"
    for folder in ("src/gradstab", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    modules = {f"gradstab/{p.relative_to(ROOT / 'src/gradstab')}" for p in (ROOT / "src/gradstab").rglob("*.py")}
    yamls = {f"gradstab/configs/{p.relative_to(ROOT / 'configs')}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert len(yamls) > 80
    assert modules | yamls | {"gradstab/py.typed"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)

    code = (
        "import gradstab, sys; assert gradstab.__file__.startswith(sys.argv[1]), gradstab.__file__; "
        "from gradstab.cli import main; sys.exit(main(['train', 'steps=2', 'model.depth=2', 'quiet=true']))"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    run = [sys.executable, "-c", code, str(tmp_path)]
    trained = subprocess.run(run, capture_output=True, text=True, cwd=elsewhere, env=environment, check=False)
    assert trained.returncode == 0, trained.stderr
    assert len(list(elsewhere.glob("outputs/train/*/run.json"))) == 1
