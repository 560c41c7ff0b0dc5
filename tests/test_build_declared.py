"""What a folder says is what is built; what cannot encode never appears."""

import json
import pickle
import shutil

import numpy as np
import pytest
import sentence_transformers
import tiny
import torch
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from test_build_adapters import lora

from xvlm2vec_st import SentenceTransformer, build
from xvlm2vec_st.__main__ import main
from xvlm2vec_st.building.builder import stored_dtype
from xvlm2vec_st.families import template_limits as limits
from xvlm2vec_st.families import templates

ROWS = ["a dog", {"image": tiny.random_image()}, {"image": tiny.random_image(), "text": "a dog"}]


def declared(folder):
    """A sentence-transformers folder of its own making: mean pooling, a Dense layer, a prompt, a template."""
    body = sentence_transformers.SentenceTransformer(str(tiny.embedder("llava")), device="cpu")[0]
    body.processor.chat_template = body.processor.chat_template + "!"
    torch.manual_seed(3)
    modules = [body, Pooling(32, "mean"), Dense(32, 8), Normalize()]
    model = sentence_transformers.SentenceTransformer(
        modules=modules, device="cpu", prompts={"query": "find: "}, default_prompt_name="query"
    )
    model.save(str(folder))
    return folder


def test_a_sentence_transformers_folder_keeps_what_it_declares(tmp_path):
    base = declared(tmp_path / "base")
    out = build(base, tmp_path / "out")
    want, got = (sentence_transformers.SentenceTransformer(str(f), device="cpu") for f in (base, out))
    assert [type(module).__name__ for module in got] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert (got.prompts["query"], got.default_prompt_name) == ("find: ", "query")
    assert got[0].processor.chat_template == want[0].processor.chat_template
    for row in ROWS:
        assert np.abs(want.encode([row]) - got.encode([row])).max() < 1e-5
    assert "state of the last token" not in (out / "README.md").read_text()


def test_an_adapter_is_merged_into_a_folder_that_keeps_what_it_declares(tmp_path):
    lora(tmp_path / "adapter", tiny.checkpoint("llava"), head=False)
    base = declared(tmp_path / "base")
    out = build(base, tmp_path / "out", adapter=tmp_path / "adapter")
    plain, merged = (sentence_transformers.SentenceTransformer(str(f), device="cpu") for f in (base, out))
    assert len(merged) == 4
    assert merged[0].processor.chat_template == plain[0].processor.chat_template
    assert np.abs(plain.encode(ROWS[:1]) - merged.encode(ROWS[:1])).max() > 1e-3
    with pytest.raises(ValueError, match="keep_adapter: .* is a sentence-transformers folder already"):
        build(base, tmp_path / "kept", adapter=tmp_path / "adapter", keep_adapter=True)


def test_a_template_given_in_the_librarys_way_is_taken(tmp_path):
    raw = str(tiny.checkpoint("llava"))
    text = templates.build_template("llava") + "?"
    given = SentenceTransformer(raw, device="cpu", processor_kwargs={"chat_template": text})
    assert given[0].processor.chat_template == text
    family = SentenceTransformer(raw, device="cpu")
    assert np.abs(given.encode("a dog") - family.encode("a dog")).max() > 1e-3
    with pytest.raises(ValueError, match=r"template and processor_kwargs\['chat_template'\] are both given"):
        SentenceTransformer(raw, device="cpu", template="llava", processor_kwargs={"chat_template": text})


def changed(folder, name, change):
    base = shutil.copytree(tiny.checkpoint("llava"), folder)
    if change is None:
        (base / name).unlink()
    else:
        (base / name).write_text(json.dumps(json.loads((base / name).read_text()) | change))
    return base


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("processor_config.json", {"patch_size": None}),
        ("tokenizer.json", None),
        ("tokenizer_config.json", {"pad_token": None}),
    ],
)
def test_a_checkpoint_that_cannot_encode_makes_no_folder(tmp_path, name, change):
    base = changed(tmp_path / "base", name, change)
    with pytest.raises((ValueError, OSError)):
        build(base, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{% for m in messages %}", "template .*t.jinja, line 1: "),
        (b"\xff", "template .*t.jinja: byte 0 is not UTF-8"),
        (b"{{ messages.nothing.there }}", "cannot encode a text .*check its chat template"),
        (b"{{ raise_exception('only chats') }}", "cannot encode a text .*only chats"),
    ],
)
def test_a_template_that_cannot_render_makes_no_folder(tmp_path, content, message):
    (tmp_path / "t.jinja").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        build(tiny.checkpoint("llava"), tmp_path / "out", template=tmp_path / "t.jinja")
    assert [path.name for path in tmp_path.iterdir()] == ["t.jinja"]


def test_weights_that_are_not_numbers_make_no_folder(tmp_path):
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(tiny.checkpoint("llava"), tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    for name in weights:
        if "embed_tokens" in name:
            weights[name].fill_(float("nan"))
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="the embedding of a text is not a number; check its weights"):
        build(base, tmp_path / "out")


def test_a_merged_adapter_is_stored_in_the_type_of_the_files(tmp_path):
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(tiny.checkpoint("llava"), tmp_path / "base")
    weights = {name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config.pop("dtype", None)
    config["text_config"]["dtype"] = "bfloat16"
    (base / "config.json").write_text(json.dumps(config))
    assert stored_dtype(str(base)) == torch.bfloat16
    lora(tmp_path / "adapter", tiny.checkpoint("llava"), head=False)
    out = build(base, tmp_path / "out", adapter=tmp_path / "adapter")
    assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
        "{% endfor %}{% endfor %}",
        "{{ 9**(9**9) }}",
        "{{ 'x' * 10**10 }}",
    ],
    ids=["loops", "a power", "a long text"],
)
def test_a_template_that_never_ends_is_cut_off(tmp_path, template, monkeypatch):
    monkeypatch.setattr(limits, "CODE", limits.CODE.replace("RLIMIT_CPU, (10, 10)", "RLIMIT_CPU, (1, 1)"))
    (tmp_path / "t.jinja").write_text(template)
    with pytest.raises(ValueError, match="the chat template of .*t.jinja does not render within"):
        build(tiny.checkpoint("llava"), tmp_path / "out", template=tmp_path / "t.jinja")
    assert [path.name for path in tmp_path.iterdir()] == ["t.jinja"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../s.safetensors"}}, "names '../s.safetensors', which is not a file of its"),
        ({"weight_map": {"a": "/etc/passwd"}}, "names '/etc/passwd', which is not a file of its folder"),
        ({"weight_map": {"a": "gone.safetensors"}}, "names 'gone.safetensors', which is missing"),
        ({"weight_map": {"a": 1}}, "is not an index of weights"),
        ({"weight_map": ["a"]}, "is not an index of weights"),
        ({}, "is not an index of weights"),
        ([], "is not an index of weights"),
    ],
)
def test_an_index_names_files_of_its_folder(tmp_path, index, message):
    base = shutil.copytree(tiny.checkpoint("llava"), tmp_path / "base")
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"model.safetensors.index.json {message}"):
        build(base, tmp_path / "out")
    with pytest.raises(ValueError, match="model.safetensors.index.json"):
        SentenceTransformer(str(base), device="cpu")


def test_a_pickle_as_weights_is_refused_in_one_line(tmp_path, capsys):
    base = shutil.copytree(tiny.checkpoint("llava"), tmp_path / "base")
    (base / "model.safetensors").unlink()
    flag = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (open, (str(flag), "w"))

    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    assert main(["build", str(base), str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in printed and not flag.exists()


def test_code_in_a_folder_is_never_run(tmp_path):
    base = shutil.copytree(tiny.checkpoint("llava"), tmp_path / "base")
    flag = tmp_path / "executed"
    (base / "evil.py").write_text(f"open({str(flag)!r}, 'w')")
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "unknown_to_all", "auto_map": {"AutoConfig": "evil.Config"}}
    (base / "config.json").write_text(json.dumps(config))
    for load in (lambda: build(base, tmp_path / "out"), lambda: SentenceTransformer(str(base), device="cpu")):
        with pytest.raises(ValueError, match="unknown_to_all|trust_remote_code"):
            load()
    assert not flag.exists()
