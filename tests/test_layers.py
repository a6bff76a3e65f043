"""The layers of the package stay layers."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path


def test_import_layers():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_imports_itself_in_a_circle():
    root = Path(__file__).parents[1]
    names = {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (root / "lke_lightning").rglob("*.py")
    }
    imports = {name: set() for name in names}  # those inside functions, and for type checkers, too
    for name, file in names.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                imports[name] |= (inside & names.keys()) or ({node.module} & names.keys())
            elif isinstance(node, ast.Import):
                imports[name] |= {alias.name for alias in node.names} & names.keys()
        imports[name].discard(name)
    assert len(list(TopologicalSorter(imports).static_order())) == len(names)
