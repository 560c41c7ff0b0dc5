"""`build`: every family against its raw model run by hand, and what is refused."""

import json
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import tiny
import torch
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny import PLACEHOLDER, by_hand, checkpoint, embedder, every_family, random_image, stock
from transformers import LlamaConfig, VipLlavaConfig

from xvlm2vec_st import SentenceTransformer, build
from xvlm2vec_st.__main__ import build_parser, main
from xvlm2vec_st.families.templates import PLACEHOLDERS

ROOT = Path(__file__).parents[1]


@every_family
def test_stock_gives_the_raw_models_embeddings(family: str) -> None:
    model, image = stock(family), random_image()
    rows = ["a dog", image, {"image": image, "text": "what is it?"}, {"text": "why?", "image": image}]
    texts = ["a dog", *(PLACEHOLDER[family] + text for text in ("", "what is it?", "why?"))]
    raw = checkpoint(family)
    want = torch.stack([by_hand(raw, text, image if i else None) for i, text in enumerate(texts)])
    assert (want[2] - want[3]).abs().max() > 1e-3
    assert (want[1] - want[0]).abs().max() > 1e-3
    one_by_one = torch.stack([torch.as_tensor(model.encode([row])[0]) for row in rows])
    torch.testing.assert_close(one_by_one, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.as_tensor(model.encode(rows)), want, rtol=0, atol=1e-5)


@every_family
def test_native_modules_and_a_pinned_backend(family: str) -> None:
    folder = embedder(family)
    listed = json.loads((folder / "modules.json").read_text("utf-8"))
    assert [part["type"].rpartition(".")[2] for part in listed] == ["Transformer", "Pooling", "Normalize"]
    assert all(part["type"].startswith("sentence_transformers.") for part in listed)
    settings = json.loads((folder / "sentence_bert_config.json").read_text("utf-8"))
    # Mistral 3's processor needs torchvision, but reads images with PIL.
    backend = "torchvision" if family in tiny.VIDEO and family != "mistral3" else "pil"
    assert settings["processor_kwargs"] == {"backend": backend}
    card = (folder / "README.md").read_text("utf-8")
    assert f"Built from `{family}`" in card
    assert ("import xvlm2vec_st" in card) == (family == "phi3_v")


# A process of its own, where peft is not installed, that imports this package when it must.
STOCK = """import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "peft" else find(name, *rest)
sys.modules["peft"] = None
from sentence_transformers import SentenceTransformer
print(*SentenceTransformer({llava!r}, device="cpu").encode("a dog").tolist())
assert "xvlm2vec_st" not in sys.modules
from xvlm2vec_st import build
print(*SentenceTransformer({phi3_v!r}, device="cpu").encode("a dog").tolist())
print(build({raw!r}, {out!r}))
build({raw!r}, {out!r} + "2", adapter="some/adapter")
"""


@pytest.mark.slow
def test_stock_needs_this_package_for_phi3v_alone_and_peft_is_for_adapters(tmp_path: Path) -> None:
    folders = {family: str(embedder(family)) for family in ("llava", "phi3_v")}
    script = STOCK.format(**folders, raw=str(checkpoint("llava")), out=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip().endswith("ValueError: the adapter some/adapter needs peft; pip install peft")
    *vectors, out = done.stdout.splitlines()
    for family, vector in zip(folders, vectors, strict=True):
        got = torch.tensor([float(number) for number in vector.split()])
        torch.testing.assert_close(got, by_hand(checkpoint(family), "a dog"), rtol=0, atol=1e-5)
    assert out == str(tmp_path / "out")


def test_dtype_is_the_stored_one(tmp_path: Path) -> None:
    out = build(checkpoint("llava"), tmp_path / "out", dtype="bf16")
    assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"


def test_arguments_that_are_refused(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    for arguments, match in (
        ({"out": full}, "is not empty"),
        ({"out": checkpoint("llava"), "overwrite": True}, "out is base"),
        ({"num_crops": 0}, "num_crops is 0; pass 1 or more"),
        ({"num_crops": 4}, "num_crops is for phi3_v, and this is a llava"),
        ({"dtype": "int8"}, "dtype is 'int8'; pass one of bf16"),
        ({"keep_adapter": True}, "keep_adapter without an adapter; pass adapter="),
        ({"keep_adapter": True, "adapter": "any", "dtype": "bf16"}, "pass only one of them"),
        ({"template": tmp_path / "none.jinja"}, "is not a file"),
    ):
        with pytest.raises(ValueError, match=match):
            build(checkpoint("llava"), **({"out": tmp_path / "out"} | arguments))
    assert (full / "mine.txt").read_text() == "keep me"
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert build(checkpoint("llava"), full, overwrite=True) == full
    assert not (full / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_build_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(checkpoint("llava"), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}

    def full_disk(self: Any, folder: str, **_: Any) -> None:
        assert ".partial" in str(folder)
        raise OSError("no space left")

    monkeypatch.setattr(Pooling, "save", full_disk)
    for out in ("new", "out"):
        with pytest.raises(OSError, match="no space left"):
            build(checkpoint("llava"), tmp_path / out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}


def unknown(folder: Path) -> Path:
    """A raw VipLLaVA: an LVLM of a family that has no template here."""
    config = VipLlavaConfig(
        vision_config=tiny.CLIP,
        text_config=LlamaConfig(**tiny.TEXT),
        image_token_index=tiny.ID["<image>"],
        vision_feature_layers=[-2, -1],
    )
    return tiny.write(folder, config, tiny.llava()[1])


def test_unknown_family_wants_a_template(tmp_path: Path) -> None:
    base = unknown(tmp_path / "base")
    with pytest.raises(ValueError, match="no chat template for 'vipllava'.*Pass template="):
        build(base, tmp_path / "out")
    with pytest.raises(ValueError, match="no chat template for 'vipllava'"):
        SentenceTransformer(str(base), device="cpu")
    out = build(base, tmp_path / "out", template="llava")
    got = sentence_transformers.SentenceTransformer(str(out), device="cpu").encode(random_image())
    torch.testing.assert_close(torch.as_tensor(got), by_hand(base, "<image>\n", random_image()), rtol=0, atol=1e-5)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["build", str(checkpoint("llava")), str(tmp_path / "out"), "--dtype", "bf16"]
    assert main(said) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert main(said) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main([*said, "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["build", str(tmp_path / "nowhere"), str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err.endswith("nowhere: no such folder; a name on the Hub is OWNER/NAME\n")


def test_the_unused_head_of_every_checkpoint_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def report(logger: logging.Logger, **_: object) -> None:
        told.append(logger.isEnabledFor(logging.WARNING))

    monkeypatch.setattr("transformers.modeling_utils.log_state_dict_report", report)
    build(checkpoint("llava"), tmp_path / "out")
    assert told and not any(told)


@pytest.mark.parametrize("document", ["README.md", "docs/build.md"])
def test_commands_of_the_documents_are_ones(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    lines = re.findall(r"^    xvlm2vec (build [\w-]+/.*)$", text, re.MULTILINE)
    said = [vars(build_parser().parse_args(shlex.split(line))) for line in lines]
    assert [(each["base"], each["adapter"]) for each in said] == [
        ("microsoft/Phi-3.5-vision-instruct", "TIGER-Lab/VLM2Vec-LoRA"),
        ("swap-uniba/xVLM2Vec", None),
        ("VLM2Vec/VLM2Vec-V2.0", None),
        ("Qwen/Qwen3-VL-Embedding-2B", None),
    ]
    assert all(each["template"] in (None, *PLACEHOLDERS, "its_own.jinja") for each in said)
