"""The rendered prompt of every family, as the processor would read it."""

from pathlib import Path

import pytest
import tiny
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from xvlm2vec_st.families.published import PUBLISHED, recognise
from xvlm2vec_st.families.templates import NAMES, PLACEHOLDERS, build_template, read_template

IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "Was ist das?"}
PROMPT = {"role": "system", "content": [{"type": "text", "text": "Represent: "}]}

QWEN = "<|vision_start|><|image_pad|><|vision_end|>\n"
# family: text, image, image + text, two images + text with a prompt
GOLDEN = {
    "phi3_v": (
        "Was ist das?",
        "<|image_1|>\n",
        "<|image_1|>\nWas ist das?",
        "<|image_1|>\n<|image_2|>\nRepresent: Was ist das?",
    ),
    **{
        family: (
            "Was ist das?",
            "<image>\n",
            "<image>\nWas ist das?",
            "<image>\n<image>\nRepresent: Was ist das?",
        )
        for family in tiny.IMAGE
    },
    **{
        family: ("Was ist das?", image, f"{image}Was ist das?", f"{image}{image}Represent: Was ist das?")
        for family, image in {
            "internvl": "<IMG_CONTEXT>\n",
            "mistral3": "[IMG]\n",
            "gemma3": "<start_of_image>\n",
            "qwen2_5_omni_thinker": "<|vision_bos|><|IMAGE|><|vision_eos|>\n",
            "gemma4": "<|image|>\n",
            "cohere2_vision": "<|IMG_PATCH|>\n",
        }.items()
    },
    **{
        family: ("Was ist das?", QWEN, f"{QWEN}Was ist das?", f"{QWEN}{QWEN}Represent: Was ist das?")
        for family in tiny.QWENS
    },
}


BOTH, ALONE = "<|im_start|>user\n", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
END = "<|im_end|>\n<|im_start|>assistant\n"
PADS = "<|vision_start|><|image_pad|><|vision_end|>"
USER = "<|start_header_id|>user<|end_header_id|>\n\n"
REPLY = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n \n"
ASKED = "<|im_start|>system\nRepresent: <|im_end|>\n<|im_start|>user\n"
DEFAULT = "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\n"
# The rows as the embedders' own code writes them; see the sources in families/published.py.
PUBLISHED_GOLDEN = {
    "qwen3_vl_embedding": (
        f"{DEFAULT}Was ist das?{END}",
        f"{DEFAULT}{PADS}{END}",
        f"{DEFAULT}{PADS}Was ist das?{END}",
        f"{ASKED}{PADS}{PADS}Was ist das?{END}",
    ),
    **{
        name: (
            f"{ALONE}Was ist das?{END}<|endoftext|>",
            f"{ALONE}{PADS}{END}<|endoftext|>",
            f"{ALONE}{PADS}Was ist das?{END}<|endoftext|>",
            f"{ASKED}{PADS}{PADS}Was ist das?{END}<|endoftext|>",
        )
        for name in ("gme", "ops_mm")
    },
    "rzen_embed": (
        f"{ALONE}Was ist das?{END}<|endoftext|>",
        f"{ALONE}{PADS}{END}<|endoftext|>",
        f"{ALONE}{PADS}Was ist das?{END}<|endoftext|>",
        f"{ALONE}{PADS}{PADS}Represent: Was ist das?{END}<|endoftext|>",
    ),
    "unite": (
        f"{ALONE}Was ist das?\nSummary above sentence in one word:{END}<|endoftext|>",
        f"{ALONE}{PADS}\nSummary above image in one word:{END}<|endoftext|>",
        f"{ALONE}{PADS}Was ist das?\nSummary above sentence and image in one word:{END}<|endoftext|>",
        f"{ALONE}{PADS}{PADS}Represent: Was ist das?\nSummary above sentence and image in one word:{END}<|endoftext|>",
    ),
    "vlm2vec_v2": (
        "Was ist das?",
        "<|image_pad|>\n",
        "<|image_pad|>\nWas ist das?",
        "<|image_pad|>\n<|image_pad|>\nRepresent: Was ist das?",
    ),
    "e5_v": (
        f"{USER}Was ist das?\nSummary above sentence in one word: {REPLY}",
        f"{USER}<image>\nSummary above image in one word: {REPLY}",
        f'{USER}[INST] <image> Modify this image with "Was ist das?" '
        f"Describe modified image in one word: [/INST]{REPLY}",
        f'{USER}[INST] <image><image> Modify this image with "Represent: Was ist das?" '
        f"Describe modified image in one word: [/INST]{REPLY}",
    ),
    "bge_vl": (
        "[INST]  Was ist das? \n [/INST]",
        "[INST]  <image> [/INST]",
        "[INST]  Was ist das? \n <image> [/INST]",
        "[INST] \n <instruct> Represent:  <query>  Was ist das? \n <image> <image> [/INST]",
    ),
    "unime_v2": (
        "<|im_start|>user \nWas ist das?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user <image>\nFind an image caption describing the given image.<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user <image>\nWas ist das?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user <image><image>\nRepresent: \nWas ist das?<|im_end|><|im_start|>assistant\n",
    ),
    "nomic_multimodal": (
        "Was ist das?<|endoftext|>",
        f"{BOTH}{PADS}Describe the image.<|im_end|><|endoftext|>",
        f"{BOTH}{PADS}Was ist das?<|im_end|><|endoftext|>",
        f"{BOTH}{PADS}{PADS}Represent: Was ist das?<|im_end|><|endoftext|>",
    ),
    "wemm": (
        "<|im_start|>user\nWas ist das?<|im_end|>",
        f"<|im_start|>user{PADS}<|im_end|>",
        f"<|im_start|>user{PADS}Was ist das?<|im_end|>",
        f"<|im_start|>user{PADS}{PADS}Represent:  Was ist das?<|im_end|>",
    ),
}


def render(family: str, *messages: dict) -> str:
    rendered, _ = render_jinja_template([list(messages)], chat_template=build_template(family))
    return rendered[0]


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize("family", NAMES)
def test_golden_strings(family: str) -> None:
    got = (
        render(family, user(TEXT)),
        render(family, user(IMAGE)),
        render(family, user(IMAGE, TEXT)),
        render(family, PROMPT, user(IMAGE, IMAGE, TEXT)),
    )
    assert got == (GOLDEN | PUBLISHED_GOLDEN)[family]
    if family in PUBLISHED:
        assert all(row.endswith(PUBLISHED[family].pooled) for row in got)


@pytest.mark.parametrize("family", PLACEHOLDERS)
def test_order_of_keys_and_kind_of_content_do_not_matter(family: str) -> None:
    want = GOLDEN[family][2]
    assert render(family, user(TEXT, IMAGE)) == want
    assert render(family, {"role": "user", "content": "Was ist das?"}) == GOLDEN[family][0]
    flat = {"role": "system", "content": "Was "}
    assert render(family, flat, user(IMAGE, {"type": "text", "text": "ist das?"})) == want


@pytest.mark.parametrize("family", NAMES)
def test_another_modality_is_refused(family: str) -> None:
    with pytest.raises(TemplateError, match="text and images, not video"):
        render(family, user({"type": "video"}, TEXT))


def test_phi3v_has_one_template() -> None:
    """The processor's default is what `build` stores."""
    assert tiny.phi3_v()[1].chat_template == build_template("phi3_v")


def test_unknown_family_and_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no chat template for 'bert'; there is one for phi3_v, .*Pass template="):
        build_template("bert")
    (tmp_path / "t.jinja").write_text("{{ 1 }}")
    assert read_template(tmp_path / "t.jinja") == "{{ 1 }}"
    (tmp_path / "t.jinja").write_text(" \n")
    with pytest.raises(ValueError, match="is empty"):
        read_template(tmp_path / "t.jinja")
    with pytest.raises(ValueError, match="is not a file"):
        read_template(tmp_path / "absent.jinja")


@pytest.mark.parametrize(
    ("names", "family", "entry"),
    [
        (["Qwen/Qwen3-VL-Embedding-8B"], "qwen3_vl", "qwen3_vl_embedding"),
        (["Qwen/Qwen3-VL-8B-Instruct"], "qwen3_vl", None),
        (["/models/gme-Qwen2-VL-7B-Instruct/"], "qwen2_vl", "gme"),
        (["/gme-Qwen2-VL-7B-Instruct/other"], "qwen2_vl", None),
        (["OpenSearch-AI/Ops-MM-embedding-v1-2B"], "qwen2_vl", "ops_mm"),
        (["qihoo360/RzenEmbed"], "qwen2_vl", "rzen_embed"),
        (["friedrichor/Unite-Base-Qwen2-VL-2B"], "qwen2_vl", "unite"),
        (["VLM2Vec/VLM2Vec-V2.0"], "qwen2_vl", "vlm2vec_v2"),
        (["royokong/e5-v"], "llava_next", "e5_v"),
        (["llava-hf/llama3-llava-next-8b-hf", "royokong/e5-v"], "llava_next", "e5_v"),
        (["BAAI/BGE-VL-MLLM-S1"], "llava_next", "bge_vl"),
        (["TianchengGu/UniME-V2-LLaVA-OneVision-8B"], "llava_onevision", "unime_v2"),
        (["Qwen/Qwen2.5-VL-3B-Instruct", "nomic-ai/nomic-embed-multimodal-3b"], "qwen2_5_vl", "nomic_multimodal"),
        (["tencent/WeMM-Embedding-2B"], "qwen3_5", "wemm"),
        (["tencent/WeMM-Embedding-2B"], "llava", None),
    ],
)
def test_published_embedders_are_recognised_by_name(names: list[str], family: str, entry: str | None) -> None:
    assert recognise(names, family) == entry


@pytest.mark.parametrize(
    ("file", "text", "family", "entry"),
    [
        ("chat_template.jinja", "{%- set d = 'Represent the user\\'s input.' -%}", "qwen3_vl", "qwen3_vl_embedding"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": {"content": "<embedding>"}}}', "qwen3_5", "wemm"),
        ("gme_inference.py", "class GmeQwen2VL: ...", "qwen2_vl", "gme"),
        ("gme_inference.py", "class GmeQwen2VL: ...", "llava", None),
        ("chat_template.jinja", "{{ messages }}", "qwen3_vl", None),
    ],
)
def test_a_renamed_folder_is_recognised_by_its_files(
    file: str, text: str, family: str, entry: str | None, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(text)
    assert recognise([str(tmp_path)], family) == entry
