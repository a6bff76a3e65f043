"""What pyproject.toml calls the oldest versions is what `make test-oldest` installs."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]


def oldest():
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pins}


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_a_lower_bound_is_the_version_that_is_tested(text):
    requirement = Requirement(text)
    (lowest,) = (Version(bound.version) for bound in requirement.specifier if bound.operator == ">=")
    assert oldest()[canonicalize_name(requirement.name)] == lowest, "regenerate constraints-oldest.txt"
