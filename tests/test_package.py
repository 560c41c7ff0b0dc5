"""The package as a whole: what it exports, and what it needs for it."""

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import xvlm2vec_st

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", xvlm2vec_st.__all__)
def test_every_public_name_is_there(name):
    assert getattr(xvlm2vec_st, name).__module__.startswith("xvlm2vec_st.")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'; it has DistillationTrainer"):
        xvlm2vec_st.Trainer  # noqa: B018


def test_importing_needs_none_of_the_extras():
    blocked = ("peft", "accelerate", "datasets", "mteb", "matplotlib", "torchvision")
    script = (
        "import sys\n"
        f"for name in {blocked}: sys.modules[name] = None\n"
        "import xvlm2vec_st, transformers\n"
        "print(transformers.AutoConfig.for_model('phi3_v').model_type)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "phi3_v", done.stderr[-500:]


def test_packages_do_not_import_recipes_and_xvlm2vec_st_knows_nothing_of_mmmeb():
    for package, forbidden in (
        ("xvlm2vec_st", "mmmeb_tasks|recipes"),
        ("mmmeb_tasks", "recipes|xvlm2vec_st"),
    ):
        for path in (ROOT / package).rglob("*.py"):
            found = re.findall(rf"^\s*(?:from|import) ({forbidden})\b", path.read_text("utf-8"), re.MULTILINE)
            assert not found, path


def test_the_wheel_holds_every_package():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = set()
    for name in ("xvlm2vec_st", "mmmeb_tasks", "recipes"):
        for path in (ROOT / name).rglob("__init__.py"):
            package = ".".join(path.parent.relative_to(ROOT).parts)
            found.add(package.replace("recipes", "xvlm2vec_recipes", 1) if name == "recipes" else package)
    assert set(setuptools["packages"]) == found and setuptools["packages"] == sorted(found)


def test_bundled_files_are_package_data():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    setuptools = project["tool"]["setuptools"]
    patterns = setuptools["package-data"]
    for package, pattern in ((p, pattern) for p, listed in patterns.items() for pattern in listed):
        folder = setuptools["package-dir"].get(package, package)
        assert list((ROOT / folder).glob(pattern)), (package, pattern)
    assert not any("torchvision" in need for need in project["project"]["dependencies"])


def test_the_api_page_has_every_public_name_with_its_parameters():
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    section = page.split("## xvlm2vec_st\n")[1].split("\n## ")[0]
    signatures = dict(re.findall(r"^### (\w+)\n    \w+\(((?:.|\n)*?)\)\n", section, re.MULTILINE))
    assert set(re.findall(r"^### (\w+)$", section, re.MULTILINE)) == set(xvlm2vec_st.__all__)
    assert len(signatures) > 4
    for name, text in signatures.items():
        documented = re.findall(r"(?:^|,\s*)(?:\*{1,2})?(\w+)", re.sub(r"=\([^)]*\)|=[^,\n]+", "", text))
        parameters = list(inspect.signature(getattr(xvlm2vec_st, name)).parameters)
        assert documented == parameters, name
