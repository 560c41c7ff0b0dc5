"""What is installed: the constraints files, the ranges of pyproject.toml, the workflow."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def requirements() -> list[Requirement]:
    """What pyproject.toml asks for, in all extras; those on other packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    every = [Requirement(line) for line in [*project["dependencies"], *(line for e in extras for line in e)]]
    return [each for each in every if each.name != project["name"]]


def pins(file: str, python: str) -> dict[str, Version]:
    """Versions by package on Linux with that Python."""
    lines = [line for line in (ROOT / file).read_text("utf-8").splitlines() if not line.startswith("#")]
    here = {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": "linux"}
    here |= {"platform_machine": "x86_64", "implementation_name": "cpython"}
    here |= {"platform_python_implementation": "CPython", "extra": ""}
    found = {}
    for line in lines:
        pinned, _, marker = line.partition(" ; ")
        name, version = pinned.split("==")
        if not marker or Marker(marker).evaluate(here):
            assert canonicalize_name(name) not in found, line
            found[canonicalize_name(name)] = Version(version)
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_the_tested_versions_are_in_the_ranges(python: str) -> None:
    tested = pins("constraints.txt", python)
    for requirement in requirements():
        assert tested[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    lowest = pins("constraints-lowest.txt", "3.11")
    bounded = {}
    for requirement in requirements():
        for bound in requirement.specifier:
            if bound.operator == ">=":
                bounded[canonicalize_name(requirement.name)] = Version(bound.version)
    assert len(bounded) > 15
    for name, bound in bounded.items():
        # The first release of a series may have been withdrawn or carry a third number: 0.4 is 0.4.3.
        assert lowest[name].release[: len(bound.release)] == bound.release, name


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_constraints_are_versions_and_no_places(file: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    assert not re.search(r"://|^-|@|--", text, re.MULTILINE)
    assert len(pins(file, "3.11")) > 90


def test_the_workflow_runs_the_make_targets() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8"))
    jobs = workflow["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert tuple(matrix["python"]) == PYTHONS
    versions = {*matrix["versions"], *(each["versions"] for each in matrix["include"])}
    assert versions == {"tested", "lowest"}
    assert jobs["newest"]["continue-on-error"] is True
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert len(runs) == 2
    for command in runs:
        for version in (*versions, "newest"):
            words = command.replace("${{ matrix.versions }}", version).split()
            assert words[:2] == ["make", "test"]
            subprocess.run([*words, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_other_versions_are_refused_by_make() -> None:
    done = subprocess.run(["make", "-n", "test", "VERSIONS=latest"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "pass tested, lowest or newest" in done.stderr
