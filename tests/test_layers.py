"""The layers of the package stay layers."""

import subprocess
import sys
from pathlib import Path


def test_import_layers():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
