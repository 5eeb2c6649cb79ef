"""Build the wheel, install it into a clean environment, and train there from another folder.

    python scripts/wheel_check.py

Downloads everything that gradstab needs, as a user's first `pip install` would.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run the check; the first thing that fails ends it with its own message."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # A copy, so that no build/ of an earlier day is packed and none is left behind.
        source = folder / "source"
        for part in ("src/gradstab", "configs"):
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", scratch, str(source)], check=True)
        (wheel,) = folder.glob("*.whl")
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        programs = folder / "venv" / "bin"
        subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", str(wheel)], check=True)
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        count = "import importlib.resources as r, pathlib as p; root = p.Path(str(r.files('gradstab.configs')))"
        installed = subprocess.run(
            [programs / "python", "-c", f"{count}; print(len(list(root.rglob('*.yaml'))))"],
            capture_output=True,
            text=True,
            check=True,
            cwd=elsewhere,
        )
        expected = len(list((ROOT / "configs").rglob("*.yaml")))
        assert int(installed.stdout) == expected, f"{installed.stdout.strip()} of {expected} YAML files installed"
        subprocess.run([programs / "gradstab", "train", "steps=20", "out_dir=run"], check=True, cwd=elsewhere)
        record = json.loads((elsewhere / "run" / "run.json").read_text())
        assert record["status"] == "completed", record
        print(f"wheel-check: {wheel.name} installs {expected} YAML files and trains")


if __name__ == "__main__":
    main()
