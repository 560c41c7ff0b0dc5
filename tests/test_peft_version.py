"""transformers and peft that do not work together: one line before any model is loaded."""

import re
import tomllib
from pathlib import Path

import pytest
import tiny
from test_build_adapters import lora

from recipes.add_language import command as add_language
from recipes.distill import command as distill
from xvlm2vec_st import SentenceTransformer, build, lora_config
from xvlm2vec_st.utils import peft_version

ROOT = Path(__file__).parents[1]


@pytest.fixture
def misfit(monkeypatch: pytest.MonkeyPatch) -> str:
    """transformers 5.24.0 beside peft 0.21.2; returns the line's end.

    transformers compares with this constant too, so whatever reaches an adapter call of its fails.
    """
    monkeypatch.setattr(peft_version.transformers, "__version__", "5.24.0")
    monkeypatch.setattr(peft_version.integration, "MIN_PEFT_VERSION", "0.22.0")
    monkeypatch.setattr(peft_version, "version", lambda name: "0.21.2")
    monkeypatch.setattr("transformers.utils.peft_utils.importlib.metadata.version", lambda name: "0.21.2")
    return re.escape(
        "transformers 5.24.0 needs peft 0.22.0 or later, and peft 0.21.2 is installed; "
        f"run: pip install {peft_version.PAIR}"
    )


def no_model(*args: object, **kwargs: object) -> None:
    raise AssertionError("a model is loaded")


def test_the_pip_command_is_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    caps = [line.removeprefix("transformers") for line in asked if line.startswith("transformers")]
    peft = next(line for line in asked if line.startswith("peft"))
    assert f'"transformers{",".join(caps)}" "{peft}"' == peft_version.PAIR


def test_the_installed_pair_fits() -> None:
    peft_version.check_peft("an adapter")
    assert lora_config("llava").r == 16


def test_lora_config(misfit: str) -> None:
    with pytest.raises(ValueError, match=f"^lora_config: {misfit}$"):
        lora_config("llava")


@pytest.mark.parametrize("more", [[], ["--resume-from-checkpoint"]])
def test_distill(misfit: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "SentenceTransformer", no_model)
    argv = ["--student", str(tmp_path), "--corpus", str(tmp_path / "none.jsonl"), "--languages", "it"]
    with pytest.raises(ValueError, match=f"^--lora-rank: {misfit}$"):
        distill.main([*argv, "--output-dir", str(tmp_path / "out"), "--lora-rank", "4", *more])
    assert not list(tmp_path.iterdir())


def test_add_language(misfit: str, tmp_path: Path) -> None:
    argv = [str(tmp_path), "pt", "--corpus", str(tmp_path / "none.jsonl")]
    with pytest.raises(ValueError, match=f"^--lora-rank: {misfit}$"):
        add_language.main([*argv, "--out", str(tmp_path / "out"), "--lora-rank", "4"])
    assert not list(tmp_path.iterdir())


def test_build_keeps_no_adapter_and_merges_one(misfit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora(tmp_path / "adapter", tiny.checkpoint("llava"), head=True)
    merged = build(tiny.checkpoint("llava"), tmp_path / "merged", adapter=tmp_path / "adapter")
    assert SentenceTransformer(str(merged)).encode(["a dog"]).shape[0] == 1
    monkeypatch.setattr("xvlm2vec_st.building.builder.embedder_modules", no_model)
    with pytest.raises(ValueError, match=f"^keep_adapter: {misfit}$"):
        build(tiny.checkpoint("llava"), tmp_path / "kept", adapter=tmp_path / "adapter", keep_adapter=True)
    assert not (tmp_path / "kept").exists()


def test_a_folder_that_keeps_an_adapter(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    lora(tmp_path / "adapter", tiny.checkpoint("llava"), head=True)
    kept = tmp_path / "kept"
    build(tiny.checkpoint("llava"), kept, adapter=tmp_path / "adapter", keep_adapter=True)
    assert SentenceTransformer(str(kept)).encode(["a dog"]).shape[0] == 1
    misfit = request.getfixturevalue("misfit")
    with pytest.raises(ValueError, match=f"kept keeps an adapter: {misfit}$"):
        SentenceTransformer(str(kept))


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise peft_version.PackageNotFoundError(name)

    monkeypatch.setattr(peft_version, "version", missing)
    with pytest.raises(ValueError, match="^--lora needs peft; run: pip install "):
        peft_version.check_peft("--lora")
