"""The rendered prompt of every family, as the processor would read it."""

from pathlib import Path

import pytest
import tiny
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from xvlm2vec_st.families.templates import PLACEHOLDERS, build_template, read_template

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
    "qwen2_vl_bare": (
        "Was ist das?",
        "<|image_pad|>\n",
        "<|image_pad|>\nWas ist das?",
        "<|image_pad|>\n<|image_pad|>\nRepresent: Was ist das?",
    ),
}


def render(family: str, *messages: dict) -> str:
    rendered, _ = render_jinja_template([list(messages)], chat_template=build_template(family))
    return rendered[0]


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize("family", PLACEHOLDERS)
def test_golden_strings(family: str) -> None:
    got = (
        render(family, user(TEXT)),
        render(family, user(IMAGE)),
        render(family, user(IMAGE, TEXT)),
        render(family, PROMPT, user(IMAGE, IMAGE, TEXT)),
    )
    assert got == GOLDEN[family]


@pytest.mark.parametrize("family", PLACEHOLDERS)
def test_order_of_keys_and_kind_of_content_do_not_matter(family: str) -> None:
    want = GOLDEN[family][2]
    assert render(family, user(TEXT, IMAGE)) == want
    assert render(family, {"role": "user", "content": "Was ist das?"}) == GOLDEN[family][0]
    flat = {"role": "system", "content": "Was "}
    assert render(family, flat, user(IMAGE, {"type": "text", "text": "ist das?"})) == want


@pytest.mark.parametrize("family", PLACEHOLDERS)
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
