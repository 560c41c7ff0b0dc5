"""Train the mini world's English-only embedder: a 3 M parameter LLaVA, contrastive, two CPU cores.

    python -m recipes.mini_teacher --out mini-teacher           # about 18 minutes
    python -m recipes.mini_teacher --out /tmp/t --steps 4       # a smoke test

The architecture is transformers' own (SigLIP tower, two-layer projector, Llama decoder), so stock
sentence-transformers loads the result. English queries and targets of the five MMMEB kinds, scenes
drawn afresh at every step, over pairs of concepts that the test scenes do not have.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import trange
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaModel,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    get_cosine_schedule_with_warmup,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmmeb_tasks.instructions import instruction, render_query, render_target
from mmmeb_tasks.mini.phrases import RELATIONS, phrases
from mmmeb_tasks.mini.scenes import Scene, crop, draw, pair_scene, split_pairs
from mmmeb_tasks.mini.world import World, load_world
from xvlm2vec_st.save import save_embedder
from xvlm2vec_st.templates import template

SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
VOCABULARY = 4096
SCENE_PIXELS, PATCH = 48, 12  # 16 image tokens: per step as good as 36, at 0.6 of the time
# Names first (all else stays at chance without them), then all kinds, by share of the steps.
NAMES_FIRST = 0.1
MIX = {"i2t": 0.35, "t2i": 0.25, "c": 0.05, "vqa": 0.20, "vg": 0.15}
# Inverse temperature, first and last step: at 50 from the start, training stays at chance.
SCALE = (20.0, 50.0)


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the world's five languages: `<s> text </s>`, any script by its bytes.

    The tokenizer is multilingual and the training English, as in the LVLMs that this one stands for.
    """
    texts = []
    for language in world.languages:
        names = [world.name(i, language) for i in range(len(world.concepts))]
        for kind in MIX:
            texts += [*instruction(kind, language)] * 20
        for relation in RELATIONS:
            said = phrases(language)
            texts += [said.caption[relation].format(a=n, b=n) for n in names]
            texts += [said.question[relation].format(b=n) for n in names]
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
        chat_template=template("llava"),
    )
    LlavaModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    body = Transformer(str(folder))
    return SentenceTransformer(modules=[body, Pooling(192, "lasttoken"), Normalize()])


def columns(kind: str, world: World, pairs: Sequence, size: int, rng: random.Random) -> list[list]:
    """One batch of `kind`: queries, targets and, where there is one, a hard negative each.

    No two rows of a batch have the same target, so every other target is truly wrong.
    """
    if kind == "c":
        chosen = rng.sample(range(len(world.concepts)), min(size, len(world.concepts)))
        scenes = [Scene(concept, seed=rng.getrandbits(30)) for concept in chosen]
    else:
        scenes = [pair_scene(pair, rng) for pair in rng.sample(pairs, size)]
    if kind in ("vqa", "vg"):
        scenes = list({scene.answer: scene for scene in scenes}.values())
    query, target = render_query, render_target
    pictures = [draw(scene, world) for scene in scenes]
    said = [scene.caption(world, "en") for scene in scenes]
    if kind in ("i2t", "c"):
        out = [
            [{"image": p, "text": query(kind, "en")} for p in pictures],
            [target(kind, "en", text) for text in said],
        ]
        if kind == "i2t":
            out.append([target(kind, "en", s.swapped().caption(world, "en")) for s in scenes])
        return out
    if kind == "t2i":
        return [
            [query(kind, "en", text) for text in said],
            [{"image": p, "text": target(kind, "en")} for p in pictures],
        ]
    names = [world.name(scene.answer, "en") for scene in scenes]
    others = [world.name(scene.asked, "en") for scene in scenes]
    if kind == "vqa":
        asked = [scene.question(world, "en") for scene in scenes]
        return [
            [{"image": p, "text": query(kind, "en", q)} for p, q in zip(pictures, asked, strict=True)],
            [target(kind, "en", name) for name in names],
            [target(kind, "en", other) for other in others],
        ]
    crops = [crop(scene, world, scene.answer) for scene in scenes]
    return [
        [{"image": p, "text": query(kind, "en", name)} for p, name in zip(pictures, names, strict=True)],
        [{"image": c, "text": target(kind, "en")} for c in crops],
    ]


def train(model: SentenceTransformer, world: World, args: argparse.Namespace) -> float:
    """Contrastive training in place; returns the seconds it took."""
    rng = random.Random(args.seed)
    pairs, _ = split_pairs(len(world.concepts))
    loss = MultipleNegativesRankingLoss(
        model, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, weight_decay=0.01, betas=(0.9, 0.98)
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps)
    start, seen = time.time(), {}
    model.train()
    for step in (bar := trange(args.steps, desc="contrastive training")):
        done = step / args.steps
        loss.scale = SCALE[0] + (SCALE[1] - SCALE[0]) * done
        kind = "c" if done < NAMES_FIRST else rng.choices(list(MIX), list(MIX.values()))[0]
        batch = columns(kind, world, pairs, args.batch_size, rng)
        value = loss([model.preprocess(column) for column in batch], None)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen[kind] = 0.9 * seen.get(kind, value.item()) + 0.1 * value.item()
        bar.set_postfix({k: f"{v:.2f}" for k, v in seen.items()})
    model.eval()
    return time.time() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=96, help="pairs a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    transformers.set_seed(args.seed)
    world = load_world()
    model = build_model(world, args.out)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(model.tokenizer)} tokens"
    )
    seconds = train(model, world, args)
    # fp16 on disk halves the bundle; config.json says float32, so it is computed in fp32 everywhere.
    save_embedder(model.half(), args.out)
    card = args.out / "config.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    print(f"{args.out}: {args.steps} steps in {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
