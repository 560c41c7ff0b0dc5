"""The student of a `distill` run: what it learns, its loss, and how its adapter is merged."""

from pathlib import Path

import torch
from peft import PeftModel

from xvlm2vec_st import MultilingualDistillationLoss, SentenceTransformer, lora_config
from xvlm2vec_st.families.table import VISION

from .options import TEMPERATURE, DistillArguments


def set_trainable(student: SentenceTransformer, arguments: DistillArguments, *, bf16: bool) -> set[torch.dtype]:
    """Choose which parameters learn, in fp32; returns the dtypes that they had.

    bf16 has 8 bits of precision: updates at a learning rate of 1e-5 would be lost.
    """
    dtypes = {p.dtype for p in student.parameters()}
    family = student[0].config.model_type
    if arguments.keep_adapter and arguments.dora and family != "phi3_v":
        raise ValueError(
            f"--keep-adapter --dora: transformers drops the magnitudes of DoRA when it loads a {family} with "
            "an adapter; leave --keep-adapter out"
        )
    if rank := arguments.lora_rank:
        config = lora_config(
            student,
            rank=rank,
            alpha=arguments.lora_alpha or 2 * rank,
            dropout=arguments.lora_dropout,
            dora=arguments.dora,
            vision=arguments.train_vision,
        )
        student.add_adapter(config)
    elif not arguments.train_vision:
        for name, parameter in student.named_parameters():
            if VISION.search(name):
                parameter.requires_grad_(False)
    if dtypes != {torch.float32}:
        for parameter in student.parameters():
            if parameter.requires_grad or not bf16:
                parameter.data = parameter.data.float()
    return dtypes


def build_loss(
    student: SentenceTransformer, teacher: SentenceTransformer | None, arguments: DistillArguments
) -> MultilingualDistillationLoss:
    """The loss of the options."""
    return MultilingualDistillationLoss(
        student,
        teacher,
        image_part=arguments.image_part,
        distance_metric=arguments.distance_metric,
        english_weight=arguments.english_weight,
        similarity_weight=arguments.similarity_weight,
        contrastive_weight=arguments.contrastive_weight,
        middle_layer=arguments.middle_layer,
        middle_weight=1.0 if arguments.middle_weight is None else arguments.middle_weight,
        temperature=TEMPERATURE if arguments.temperature is None else arguments.temperature,
        matryoshka_dims=arguments.matryoshka_dims,
        cache=arguments.cache,
        projection=arguments.projection,
    )


def merge_adapter(student: SentenceTransformer, start: str, folder: Path) -> None:
    """Merge the student's adapter into the weights of its starting model, in fp32 and in place."""
    student[0].model.save_pretrained(folder / "adapter")
    base = SentenceTransformer(start)
    if any(p.dtype != torch.float32 for p in base.parameters()):
        base.float()  # a merge in bf16 loses what was learned
    whole = PeftModel.from_pretrained(base[0].model, str(folder / "adapter")).merge_and_unload()
    student[0].model = whole.to(student.device)
