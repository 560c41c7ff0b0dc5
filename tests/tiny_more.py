"""Tiny checkpoints of further families: see tiny.py, which collects them.

Windows are shorter than the rows, and layers of every kind occur, so that a wrong route shows.
"""

from collections.abc import Callable
from typing import Any

from transformers import (
    AyaVisionConfig,
    AyaVisionProcessor,
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionProcessor,
    Gemma3Config,
    Gemma3Processor,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4Processor,
    Gemma4TextConfig,
    Idefics2Config,
    Idefics2Processor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVisionConfig,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm2VlProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionProcessor,
    Mistral3Config,
    MistralConfig,
    MllamaConfig,
    MllamaProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2Config,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3VLMoeConfig,
    Qwen3VLProcessor,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    WhisperFeatureExtractor,
)

# Id of a token, and a tokenizer with these attributes; tiny.py passes both.
Ids = dict[str, int]
Tokens = Callable[..., PreTrainedTokenizerFast]


def siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        vision_use_head=False,
    )


def internvl(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    from transformers import InternVLVideoProcessor
    from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor

    vision = InternVLVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
    )
    config = InternVLConfig(
        vision_config=vision, text_config=Qwen2Config(**text), image_token_id=ids["<IMG_CONTEXT>"], image_seq_length=4
    )
    tokenizer = tokens(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    pixels = GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=2)
    return config, InternVLProcessor(pixels, tokenizer, InternVLVideoProcessor(), image_seq_length=4)


def llava_onevision(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    from transformers import LlavaOnevisionVideoProcessor
    from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor

    grid = [[28, 56], [56, 28]]
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**text),
        image_token_id=ids["<image>"],
        video_token_id=ids["<video>"],
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    pixels = LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=grid)
    processor = LlavaOnevisionProcessor(
        pixels,
        tokens(),
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
    )
    return config, processor


def mistral3(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=7
    )
    config = Mistral3Config(
        vision_config=vision,
        text_config=MistralConfig(**text, sliding_window=None),
        image_token_index=ids["[IMG]"],
        spatial_merge_size=2,
    )
    pixels = PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size={"height": 7, "width": 7})
    return config, PixtralProcessor(pixels, tokens(), patch_size=7, spatial_merge_size=2)


def qwen(ids: Ids) -> dict[str, Any]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def qwen3_processor(tokens: Tokens) -> Qwen3VLProcessor:
    from transformers import Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    size = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}
    pixels = Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2, size=size)
    return Qwen3VLProcessor(pixels, tokens(), Qwen3VLVideoProcessor())


QWEN3_VISION = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24}
QWEN3_VISION |= {"patch_size": 14, "num_position_embeddings": 16}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
LINEAR |= {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
LINEAR |= {"rope_parameters": MROPE | {"partial_rotary_factor": 1.0}}
MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}


def qwen3_vl_moe(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    own = text | MOE | {"rope_parameters": MROPE, "head_dim": 8}
    vision = QWEN3_VISION | {"deepstack_visual_indexes": [0]}
    return Qwen3VLMoeConfig(vision_config=vision, text_config=own, **qwen(ids)), qwen3_processor(tokens)


def qwen3_5(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    config = Qwen3_5Config(vision_config=QWEN3_VISION, text_config=text | LINEAR, **qwen(ids))
    return config, qwen3_processor(tokens)


def qwen3_5_moe(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    own = text | LINEAR | MOE | {"shared_expert_intermediate_size": 16}
    return Qwen3_5MoeConfig(vision_config=QWEN3_VISION, text_config=own, **qwen(ids)), qwen3_processor(tokens)


def qwen2_5_omni_thinker(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    """The part that reads; its audio tower gets nothing to do."""
    from transformers import Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24}
    vision |= {"patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56}
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "output_dim": 32}
    config = Qwen2_5OmniThinkerConfig(
        vision_config=vision,
        audio_config=audio | {"num_mel_bins": 16, "n_window": 4},
        text_config=text | {"rope_parameters": MROPE},
        image_token_id=ids["<|IMAGE|>"],
        video_token_id=ids["<|VIDEO|>"],
        audio_token_id=ids["<|AUDIO|>"],
        vision_start_token_id=ids["<|vision_bos|>"],
        vision_end_token_id=ids["<|vision_eos|>"],
        audio_start_token_id=ids["<|audio_bos|>"],
        audio_end_token_id=ids["<|audio_eos|>"],
    )
    tokenizer = tokens(
        image_token="<|IMAGE|>",
        audio_token="<|AUDIO|>",
        video_token="<|VIDEO|>",
        vision_bos_token="<|vision_bos|>",
        vision_eos_token="<|vision_eos|>",
        audio_bos_token="<|audio_bos|>",
        audio_eos_token="<|audio_eos|>",
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}
    pixels = Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2, size=size)
    sound = WhisperFeatureExtractor(feature_size=16)
    return config, Qwen2_5OmniProcessor(pixels, Qwen2VLVideoProcessor(), sound, tokenizer)


def lfm2_vl(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    from transformers import Lfm2VlImageProcessor

    vision = Siglip2VisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4, num_patches=16
    )
    own = Lfm2Config(**text, layer_types=["conv", "full_attention"])
    config = Lfm2VlConfig(
        vision_config=vision, text_config=own, image_token_id=ids["<image>"], projector_hidden_size=24
    )
    pixels = Lfm2VlImageProcessor(
        do_convert_rgb=True,
        do_image_splitting=False,
        min_image_tokens=2,
        max_image_tokens=8,
        encoder_patch_size=4,
        tile_size=32,
    )
    return config, Lfm2VlProcessor(pixels, tokens(image_token="<image>"))


def gemma3(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    own = Gemma3TextConfig(
        **text,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = Gemma3Config(
        vision_config=siglip(),
        text_config=own,
        mm_tokens_per_image=4,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
    )
    tokenizer = tokens(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    pixels = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    return config, Gemma3Processor(pixels, tokenizer, image_seq_length=4)


def gemma4(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    from transformers import Gemma4AudioFeatureExtractor, Gemma4ImageProcessor, Gemma4VideoProcessor

    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 2}
    own = Gemma4TextConfig(
        **text | {"num_hidden_layers": 4},
        head_dim=8,
        global_head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=text["vocab_size"],
        hidden_size_per_layer_input=8,
        use_bidirectional_attention="vision",
    )
    config = Gemma4Config(
        vision_config=vision | {"position_embedding_size": 64},
        text_config=own,
        audio_config=None,
        boi_token_id=ids["<|image>"],
        eoi_token_id=ids["<image|>"],
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        audio_token_id=ids["<|audio|>"],
    )
    tokenizer = tokens(
        boi_token="<|image>",
        eoi_token="<image|>",
        image_token="<|image|>",
        audio_token="<|audio|>",
        boa_token="<|audio>",
        eoa_token="<audio|>",
    )
    pixels = Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70, pooling_kernel_size=2)
    processor = Gemma4Processor(Gemma4AudioFeatureExtractor(), pixels, tokenizer, Gemma4VideoProcessor())
    return config, processor


def cohere2(text: dict) -> Cohere2Config:
    return Cohere2Config(**text, sliding_window=6, layer_types=["sliding_attention", "full_attention"])


def aya_vision(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    config = AyaVisionConfig(vision_config=siglip(), text_config=cohere2(text), image_token_index=ids["<|IMG_PATCH|>"])
    pixels = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=2)
    return config, AyaVisionProcessor(pixels, tokens(), patch_size=7, img_size=28, downsample_factor=2)


def cohere2_vision(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    from transformers import Cohere2VisionImageProcessor

    config = Cohere2VisionConfig(
        vision_config=siglip(),
        text_config=cohere2(text),
        image_token_id=ids["<|IMG_PATCH|>"],
        alignment_intermediate_size=24,
    )
    tokenizer = tokens(
        boi_token="<|START_OF_IMG|>",
        eoi_token="<|END_OF_IMG|>",
        image_token="<|IMG_PATCH|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )
    pixels = Cohere2VisionImageProcessor(size={"height": 28, "width": 28}, max_patches=2, patch_size=2)
    return config, Cohere2VisionProcessor(pixels, tokenizer)


def idefics2(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    perceiver = {"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 8}
    config = Idefics2Config(
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        perceiver_config=perceiver | {"num_key_value_heads": 2, "hidden_size": 32},
        text_config=text | {"model_type": "mistral", "sliding_window": None},
        image_token_id=ids["<image>"],
    )
    pixels = Idefics2ImageProcessorPil(size={"shortest_edge": 28, "longest_edge": 28}, do_image_splitting=False)
    return config, Idefics2Processor(pixels, tokens(), image_seq_len=4)


def mllama(text: dict, ids: Ids, tokens: Tokens) -> tuple[Any, Any]:
    """Its language model attends to images by cross-attention."""
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_global_layers": 1}
    vision |= {"attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_output_dim": 32}
    vision |= {"intermediate_layers_indices": [1], "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]]}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = MllamaConfig(
        vision_config=vision,
        text_config=text | {"cross_attention_layers": [1], "rope_parameters": rope},
        image_token_index=ids["<|image|>"],
    )
    pixels = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=1)
    return config, MllamaProcessor(pixels, tokens(image_token="<|image|>"))


# Families that the package's table does not list: their image placeholders.
UNLISTED = {idefics2: "<image>", mllama: "<|image|>"}
MORE = (internvl, llava_onevision, mistral3, qwen3_vl_moe, qwen3_5, qwen3_5_moe, lfm2_vl, gemma3, gemma4)
MORE += (aya_vision, cohere2_vision, qwen2_5_omni_thinker)
TOKENS = """<img> </img> <IMG_CONTEXT> [IMG] [IMG_BREAK] [IMG_END] <|image_start|> <|image_end|> <|img_thumbnail|>
<start_of_image> <end_of_image> <image_soft_token> <|image> <image|> <|video|> <|audio|> <|audio> <audio|>
<|START_OF_IMG|> <|END_OF_IMG|> <|IMG_PATCH|> <|IMG_LINE_BREAK|> TILE TILE_GLOBAL
<|IMAGE|> <|AUDIO|> <|VIDEO|> <|vision_bos|> <|vision_eos|> <|audio_bos|> <|audio_eos|>""".split()
