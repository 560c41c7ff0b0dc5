"""Chat templates of published embedders, each as its own code renders it.

A checkpoint embeds well with the layout that it was trained with, and with no other. Each entry names the source of
its layout, and the text of the token that it pools, which is the last one.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Collects a row: its image placeholders, its texts, and the prompt of sentence-transformers (a system message).
PRELUDE = """{%- set row = namespace(images='', text='', prompt='') -%}
{%- for message in messages -%}
{%- set parts = message['content'] -%}
{%- if parts is string -%}{%- set parts = [{'type': 'text', 'text': parts}] -%}{%- endif -%}
{%- for part in parts -%}
{%- if part['type'] == 'image' -%}
{%- set row.images = row.images ~ '@IMAGE@' -%}
{%- elif part['type'] != 'text' -%}
{{- raise_exception('this template takes text and images, not ' ~ part['type']) -}}
{%- elif message['role'] == 'system' -%}
{%- set row.prompt = row.prompt ~ part['text'] -%}
{%- else -%}
{%- set row.text = row.text ~ part['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
"""

QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
# A prompt takes the place of the default system message.
SYSTEM = "'<|im_start|>system\\n' ~ (row.prompt or '@DEFAULT@') ~ '<|im_end|>\\n<|im_start|>user\\n'"
ASSISTANT = "'<|im_end|>\\n<|im_start|>assistant\\n'"
HELPFUL = "You are a helpful assistant."
REPRESENT = "Represent the user's input."
LLAMA = (
    "'<|start_header_id|>user<|end_header_id|>\\n\\n'",
    "'<|eot_id|><|start_header_id|>assistant<|end_header_id|>\\n\\n \\n'",
)


@dataclass(frozen=True)
class Published:
    """The layout of a published embedder.

    Attributes:
        family: `config.model_type` of its checkpoints.
        name: regular expression of the checkpoints' names, in lower case.
        image: the placeholder of an image.
        body: a Jinja expression of `row.images`, `row.text` and `row.prompt`: the whole row.
        pooled: the end of a rendered row, whose last token is pooled.
        token: the pooled token, where the tokenizer appends it.
        query: the prompt of a text that searches, where it was trained with one.
        source: where the layout can be read.
    """

    family: str
    name: str
    image: str
    body: str
    pooled: str
    source: str
    token: str | None = None
    query: str = ""

    @property
    def template(self) -> str:
        """The Jinja chat template."""
        return PRELUDE.replace("@IMAGE@", self.image) + "{{- " + self.body + " -}}"


def system(default: str) -> str:
    """The expression of a system message, with a default."""
    return SYSTEM.replace("@DEFAULT@", default.replace("'", "\\'"))


GME = Published(
    "qwen2_vl",
    r"gme-qwen2-?vl",
    QWEN_IMAGE,
    f"{system(HELPFUL)} ~ row.images ~ row.text ~ {ASSISTANT} ~ '<|endoftext|>'",
    "<|im_start|>assistant\n<|endoftext|>",
    "Alibaba-NLP/gme-Qwen2-VL-2B-Instruct, gme_inference.py (`embed`)",
)

PUBLISHED: dict[str, Published] = {
    "qwen3_vl_embedding": Published(
        "qwen3_vl",
        r"qwen3-vl-embedding",
        QWEN_IMAGE,
        f"{system(REPRESENT)} ~ row.images ~ row.text ~ {ASSISTANT}",
        "<|im_start|>assistant\n",
        "Qwen/Qwen3-VL-Embedding-2B, chat_template.jinja, with `add_generation_prompt` as in its scripts",
    ),
    "gme": GME,
    "ops_mm": Published(
        "qwen2_vl",
        r"ops-mm-embedding",
        GME.image,
        GME.body,
        GME.pooled,
        "OpenSearch-AI/Ops-MM-embedding-v1-2B, ops_mm_embedding_v1.py; mteb 2.26, ops_mm_models.py",
    ),
    "rzen_embed": Published(
        "qwen2_vl",
        r"rzenembed",
        QWEN_IMAGE,
        f"'<|im_start|>system\\n{HELPFUL}<|im_end|>\\n<|im_start|>user\\n' ~ row.images ~ row.prompt ~ row.text ~ "
        f"{ASSISTANT} ~ '<|endoftext|>'",
        "<|im_start|>assistant\n<|endoftext|>",
        "qihoo360/RzenEmbed, rzen_embed_inference.py; mteb 2.26, rzen_embed_model.py",
    ),
    "unite": Published(
        "qwen2_vl",
        r"unite-(base|instruct)-qwen2-?vl",
        QWEN_IMAGE,
        f"'<|im_start|>system\\n{HELPFUL}<|im_end|>\\n<|im_start|>user\\n' ~ row.images ~ row.prompt ~ row.text ~ "
        "'\\nSummary above ' ~ ('sentence and image' if row.images and row.prompt ~ row.text else 'image' "
        f"if row.images else 'sentence') ~ ' in one word:' ~ {ASSISTANT} ~ '<|endoftext|>'",
        " in one word:<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
        "friedrichor/Unite, README.md; mteb 2.26, unite_models.py (`_build_prompt`)",
    ),
    "vlm2vec_v2": Published(
        "qwen2_vl",
        r"vlm2vec-(v2|qwen2-?vl)",
        "<|image_pad|>\\n",
        "row.images ~ row.prompt ~ row.text",
        "",
        "TIGER-AI-Lab/VLM2Vec, src/model/processor.py (`VLM_IMAGE_TOKENS`)",
    ),
    "e5_v": Published(
        "llava_next",
        r"e5-?v$",
        "<image>",
        f"{LLAMA[0]} ~ (('[INST] ' ~ row.images ~ ' Modify this image with \"' ~ row.prompt ~ row.text ~ "
        "'\" Describe modified image in one word: [/INST]') if row.images and row.prompt ~ row.text else (row.images ~ "
        "'\\nSummary above image in one word: ') if row.images else (row.prompt ~ row.text ~ "
        f"'\\nSummary above sentence in one word: ')) ~ {LLAMA[1]}",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n \n",
        "royokong/e5-v, README.md; mteb 2.26, e5_v.py",
    ),
    "bge_vl": Published(
        "llava_next",
        r"bge-vl-mllm",
        " <image>",
        "'[INST] ' ~ ('\\n <instruct> ' ~ row.prompt ~ ' <query> ' if row.prompt else '') ~ "
        "(' ' ~ row.text ~ ' \\n' if row.text else '') ~ row.images ~ ' [/INST]'",
        " [/INST]",
        "BAAI/BGE-VL-MLLM-S1, modeling_llavanext_for_embedding.py (`prepare_text_input`)",
    ),
    "unime_v2": Published(
        "llava_onevision",
        r"unime-v2",
        "<image>",
        "'<|im_start|>user ' ~ row.images ~ '\\n' ~ ((row.prompt ~ '\\n' if row.prompt and row.text else row.prompt) ~ "
        "row.text or ('Find an image caption describing the given image.' if row.images else '')) ~ "
        "'<|im_end|><|im_start|>assistant\\n'",
        "<|im_end|><|im_start|>assistant\n",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf, chat_template.json; mteb 2.26, unime_v2_models.py",
    ),
    "nomic_multimodal": Published(
        "qwen2_5_vl",
        r"nomic-embed-multimodal",
        QWEN_IMAGE,
        "('<|im_start|>user\\n' ~ row.images ~ (row.prompt ~ row.text or 'Describe the image.') ~ '<|im_end|>' if "
        "row.images else row.prompt ~ row.text) ~ '<|endoftext|>'",
        "<|endoftext|>",
        "illuin-tech/colpali, colqwen2_5/processing_colqwen2_5.py",
        query="Query: ",
    ),
    "wemm": Published(
        "qwen3_5",
        r"wemm-embedding",
        QWEN_IMAGE,
        "'<|im_start|>user' ~ ('' if row.images else '\\n') ~ row.images ~ row.prompt ~ "
        "(' ' if row.prompt and row.text else '') ~ row.text ~ '<|im_end|>'",
        "<|im_end|>",
        "tencent/WeMM-Embedding-2B, embedding_chat_template.jinja, and the normaliser of its tokenizer.json, which "
        "drops a newline before a special token",
        token="<embedding>",
    ),
}
# Signs of a checkpoint in its own files, for folders that were renamed: file, text, entry.
SIGNS = (
    ("chat_template.jinja", "Represent the user\\'s input.", "qwen3_vl_embedding"),
    ("tokenizer_config.json", '"<embedding>"', "wemm"),
    ("added_tokens.json", '"<embedding>"', "wemm"),
    ("rzen_embed_inference.py", "", "rzen_embed"),
    ("gme_inference.py", "", "gme"),
    ("modeling_gme_qwen2vl.py", "", "gme"),
    ("ops_mm_embedding_v1.py", "", "ops_mm"),
    ("modeling_llavanext_for_embedding.py", "", "bge_vl"),
)


def recognise(names: Iterable[str], family: str) -> str | None:
    """The entry of a checkpoint, by its names (folder, Hub id, adapter) or its own files; None if it is unknown.

    >>> recognise(["Alibaba-NLP/gme-Qwen2-VL-2B-Instruct"], "qwen2_vl")
    'gme'
    """
    names = [str(name) for name in names if name]
    for entry, published in PUBLISHED.items():
        last = (re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower() for name in names)
        if published.family == family and any(re.search(published.name, name) for name in last):
            return entry
    for name in names:
        for file, text, entry in SIGNS:
            if PUBLISHED[entry].family == family and contains(Path(name) / file, text):
                return entry
    return None


def recognise_template(template: object) -> str | None:
    """The entry whose layout a chat template is: ours, or a checkpoint's own with a sign; None if it is unknown.

    >>> recognise_template(PUBLISHED["e5_v"].template), recognise_template("{{ messages }}")
    ('e5_v', None)
    """
    for entry, published in PUBLISHED.items():
        if template == published.template:
            return entry
    signs = ((text, entry) for file, text, entry in SIGNS if file == "chat_template.jinja")
    return next((entry for text, entry in signs if isinstance(template, str) and text in template), None)


def contains(file: Path, text: str) -> bool:
    """Whether a file exists and holds a text, also if JSON escapes it."""
    if not file.is_file():
        return False
    content = file.read_text("utf-8", errors="replace")
    return text in content or json.dumps(text)[1:-1] in content
