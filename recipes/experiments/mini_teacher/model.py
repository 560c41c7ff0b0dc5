"""The mini teacher before training: a LLaVA of 3 M parameters with its tokenizer."""

from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaModel,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmmeb_tasks.data.layout import KINDS
from mmmeb_tasks.instructions import instruction
from mmmeb_tasks.mini.phrases import RELATIONS, phrases
from mmmeb_tasks.mini.world import World
from xvlm2vec_st.families.templates import build_template

SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
VOCABULARY = 4096
SCENE_PIXELS, PATCH = 48, 12  # 16 image tokens: per step as good as 36, at 0.6 of the time


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the world's five languages: `<s> text </s>`, any script by its bytes.

    The tokenizer is multilingual and the training English, as in the LVLMs that this one stands for.
    """
    texts = []
    for language in world.languages:
        names = [world.name(i, language) for i in range(len(world.concepts))]
        for kind in KINDS:
            texts += [*instruction(kind, language)] * 20
        for relation in RELATIONS:
            templates = phrases(language)
            texts += [templates.caption[relation].format(a=n, b=n) for n in names]
            texts += [templates.question[relation].format(b=n) for n in names]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=512,
        padding_side="right",
    )


def build_model(world: World, folder: Path) -> SentenceTransformer:
    """The untrained embedder, by way of a checkpoint in `folder`: LLaVA, last token, normalised."""
    tokenizer = build_tokenizer(world)
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=SCENE_PIXELS,
            patch_size=PATCH,
            vision_use_head=False,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=True,
        ),
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=(SCENE_PIXELS // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": SCENE_PIXELS, "width": SCENE_PIXELS}),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=build_template("llava"),
    )
    LlavaModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    body = Transformer(str(folder))
    return SentenceTransformer(modules=[body, Pooling(192, "lasttoken"), Normalize()])
