"""A tiny random checkpoint, with its processor, for each family; made once a process, quickly.

    @tiny.every_family
    def test_it(family):
        raw, built = tiny.checkpoint(family), tiny.embedder(family)

The families of `VIDEO` need torchvision (and SmolVLM num2words), which the other tests must not
see: transformers would resize every image with it. So they are skipped in a process without it, and
`test_families.py` runs those cases of every file that imports this one in a process that has it.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_more
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from xvlm2vec_st import build
from xvlm2vec_st.families.loading import image_backend
from xvlm2vec_st.phi3v import Phi3VConfig, Phi3VImageProcessor, Phi3VProcessor

VIDEO: dict[str, tuple[str, ...]] = {"qwen2_vl": (), "qwen2_5_vl": (), "qwen3_vl": (), "smolvlm": ("num2words",)}
VIDEO |= dict.fromkeys(("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "internvl", "llava_onevision", "mistral3"), ())
VIDEO |= dict.fromkeys(("lfm2_vl", "gemma4", "cohere2_vision", "qwen2_5_omni_thinker"), ())

SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"]
SPECIAL += ["<|image|>", *tiny_more.TOKENS]
ID = {token: i for i, token in enumerate(SPECIAL)}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "vocab_size": 336, "max_position_embeddings": 2048}
TEXT |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = CLIPVisionConfig(**TOWER, image_size=28, patch_size=14)
IDEFICS = TOWER | {"image_size": 28, "patch_size": 7}
QWEN = {"image_token_id": ID["<|image_pad|>"], "video_token_id": ID["<|video_pad|>"]}
QWEN |= {"vision_start_token_id": ID["<|vision_start|>"], "vision_end_token_id": ID["<|vision_end|>"]}
QWEN_TEXT = TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
QWEN_PIXELS = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
QWEN_PIXELS["size"] = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}
CLIP_PIXELS = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
CLIP_TOKENS = {
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}


def tokenizer(**named: str) -> PreTrainedTokenizerFast:
    """Bytes, and `<s>` before every text as LLaMA's tokenizer has it; `named` tokens become attributes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(SPECIAL + letters)}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    whole.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    whole.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=2048,
        extra_special_tokens=named,
    )


def phi3_v() -> tuple[Any, Any]:
    """313 tokens an image; rows of more than 512 tokens take the long rope factors."""
    factors = {"short_factor": [1.0, 1.01, 1.02, 1.03], "long_factor": [1.2, 2.1, 3.0, 3.9]}
    config = Phi3VConfig(
        **TEXT,
        vision_config=TOWER | {"image_size": 336, "patch_size": 14},
        original_max_position_embeddings=512,
        rope_scaling={"type": "su", **factors},
    )
    return config, Phi3VProcessor(Phi3VImageProcessor(num_crops=1), tokenizer())


def llava() -> tuple[Any, Any]:
    config = LlavaConfig(vision_config=CLIP, text_config=LlamaConfig(**TEXT), image_token_index=ID["<image>"])
    pixels = CLIPImageProcessorPil(**CLIP_PIXELS)
    return config, LlavaProcessor(image_processor=pixels, tokenizer=tokenizer(), **CLIP_TOKENS)


def llava_next() -> tuple[Any, Any]:
    grid = [[28, 56], [56, 28]]
    config = LlavaNextConfig(
        vision_config=CLIP,
        text_config=LlamaConfig(**TEXT),
        image_token_index=ID["<image>"],
        image_grid_pinpoints=grid,
    )
    pixels = LlavaNextImageProcessorPil(**CLIP_PIXELS, image_grid_pinpoints=grid)
    return config, LlavaNextProcessor(image_processor=pixels, tokenizer=tokenizer(), **CLIP_TOKENS)


def qwen2_vl() -> tuple[Any, Any]:
    from transformers import Qwen2VLVideoProcessor

    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(vision_config=vision, text_config=QWEN_TEXT, **QWEN)
    pixels = Qwen2VLImageProcessorPil(**QWEN_PIXELS)
    return config, Qwen2VLProcessor(pixels, tokenizer(), Qwen2VLVideoProcessor())


def qwen2_5_vl() -> tuple[Any, Any]:
    from transformers import Qwen2VLVideoProcessor

    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24}
    vision |= {"fullatt_block_indexes": [1], "window_size": 56}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=QWEN_TEXT, **QWEN)
    pixels = Qwen2VLImageProcessorPil(**QWEN_PIXELS)
    return config, Qwen2_5_VLProcessor(pixels, tokenizer(), Qwen2VLVideoProcessor())


def qwen3_vl() -> tuple[Any, Any]:
    from transformers import Qwen3VLVideoProcessor

    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24}
    vision |= {"patch_size": 14, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = Qwen3VLConfig(vision_config=vision, text_config=QWEN_TEXT | {"head_dim": 8}, **QWEN)
    pixels = Qwen2VLImageProcessorPil(**QWEN_PIXELS)
    return config, Qwen3VLProcessor(pixels, tokenizer(), Qwen3VLVideoProcessor())


def idefics3() -> tuple[Any, Any]:
    config = Idefics3Config(
        vision_config=IDEFICS, text_config=LlamaConfig(**TEXT), image_token_id=ID["<image>"], scale_factor=2
    )
    pixels = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    return config, Idefics3Processor(pixels, tokenizer(), image_seq_len=4)


def smolvlm() -> tuple[Any, Any]:
    from transformers import SmolVLMVideoProcessor

    config = SmolVLMConfig(
        vision_config=IDEFICS, text_config=LlamaConfig(**TEXT), image_token_id=ID["<image>"], scale_factor=2
    )
    pixels = SmolVLMImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    return config, SmolVLMProcessor(pixels, tokenizer(), SmolVLMVideoProcessor(), image_seq_len=4)


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    make.__name__: make for make in (phi3_v, llava, llava_next, qwen2_vl, qwen2_5_vl, qwen3_vl, idefics3, smolvlm)
}
MAKERS |= {make.__name__: partial(make, TEXT, ID, tokenizer) for make in tiny_more.MORE}
# What stands where the image goes, in VLM2Vec's layout.
PLACEHOLDER = {"phi3_v": "<|image_1|>\n"}
PLACEHOLDER |= {"internvl": "<IMG_CONTEXT>\n", "mistral3": "[IMG]\n", "gemma3": "<start_of_image>\n"}
PLACEHOLDER["qwen2_5_omni_thinker"] = "<|vision_bos|><|IMAGE|><|vision_eos|>\n"
PLACEHOLDER |= {"gemma4": "<|image|>\n", "cohere2_vision": "<|IMG_PATCH|>\n"}
IMAGE = ("llava", "llava_next", "idefics3", "smolvlm", "llava_onevision", "lfm2_vl", "aya_vision")
PLACEHOLDER |= dict.fromkeys(IMAGE, "<image>\n")
QWENS = [family for family in MAKERS if family.startswith("qwen") and "omni" not in family]
PLACEHOLDER |= dict.fromkeys(QWENS, "<|vision_start|><|image_pad|><|vision_end|>\n")


def case(family: str) -> Any:
    """The family as a parameter, skipped where its processor cannot be made."""
    missing = [name for name in (("torchvision", *VIDEO[family]) if family in VIDEO else ()) if not find_spec(name)]
    reason = f"{family}'s processor needs {' and '.join(missing)}: see test_families.py"
    return pytest.param(family, marks=pytest.mark.skipif(bool(missing), reason=reason))


def some_families(*families: str) -> pytest.MarkDecorator:
    """A test over `family`, one of these."""
    return pytest.mark.parametrize("family", [case(family) for family in families])


every_family = some_families(*MAKERS)


def write(folder: Path, config: Any, processor: Any) -> Path:
    """A checkpoint with the language model head and weights that are random, and the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(config.model_type))
        model = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# Qwen3.5 computes linear attention in fp32, and Gemma 4 norms and rotary factors, whatever the dtype: gradients
# differ by fp32's rounding. With these casts turned into fp64, the differences fall from 8e-06 to 3e-14 and from
# 1e-06 to 8e-08.
FP32 = ("qwen3_5", "qwen3_5_moe", "gemma4")


@cache
def place() -> Path:
    """A folder that goes when the process ends."""
    folder = tempfile.mkdtemp(prefix="tiny-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def checkpoint(family: str) -> Path:
    """The raw checkpoint's folder; not to be changed."""
    return write(place() / "raw" / family, *MAKERS[family]())


@cache
def embedder(family: str) -> Path:
    """The sentence-transformers folder that `build` makes of it; not to be changed."""
    return build(checkpoint(family), place() / "built" / family)


def double(model: SentenceTransformer) -> SentenceTransformer:
    """The model in fp64, where a gradient is exact to 1e-9. PyTorch's fused experts take fp32 at most."""
    body: Any = model[0].model
    if body._can_set_experts_implementation():
        body.set_experts_implementation("eager")
    return model.double()


def random_image(seed: int = 0, width: int = 60, height: int = 40) -> Image.Image:
    """Noise."""
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 255, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


@cache
def stock(family: str) -> SentenceTransformer:
    """The embedder in stock sentence-transformers; not to be changed."""
    return SentenceTransformer(str(embedder(family)), device="cpu")


@cache
def raw(folder: Path) -> tuple[Any, Any]:
    """A raw checkpoint's processor and headless model; not to be changed."""
    backend = image_backend(AutoConfig.from_pretrained(folder).model_type)
    processor = AutoProcessor.from_pretrained(folder, backend=backend)
    return processor, AutoModelForImageTextToText.from_pretrained(folder).model


@torch.no_grad()
def by_hand(folder: Path, text: str, image: Image.Image | None = None, model: Any = None) -> torch.Tensor:
    """Raw processor, raw model, the last state after the final norm, normalised. No ST, no template."""
    processor, own = raw(folder)
    inputs = processor(text=[text], images=None if image is None else [image], return_tensors="pt")
    return torch.nn.functional.normalize((model or own)(**inputs).last_hidden_state[0, -1], dim=0)


def damaged(folder: Path, source: Path, change: Callable[[dict], dict] | None = None, keep: int | None = None) -> Path:
    """A copy of a checkpoint or adapter with changed weights, or only the first `keep` bytes of them."""
    shutil.copytree(source, folder)
    file = next(folder.glob("*model.safetensors"))
    if change:
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    if keep:
        file.write_bytes(file.read_bytes()[:keep])
    return folder
