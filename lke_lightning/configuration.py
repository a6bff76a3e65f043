"""Where the YAML files are."""

from pathlib import Path


def configs() -> Path:
    """Return the folder of the YAML files: in the package where it is installed, beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"
