"""The variants that are compared: what each changes in the paper's recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

PAPER = "paper"
WITH_IMAGES = ("mini", "mini11")


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        share: share of the updates.
        image_share: share of rows with an image; None: as in the corpus.
    """

    share: float = 1.0
    image_share: float | None = None


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: what the records and the table call it.
        options: fields of `DistillArguments` and of the training arguments that differ from the world's.
        tuned: further options per world, chosen on its development set.
        stages: parts of the training, one after another.
        worlds: names of the worlds that it is for; default: all.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stages: tuple[Stage, ...] = (Stage(),)
    worlds: tuple[str, ...] = ("mini", "mini11", "captions")

    def options_in(self, world: str) -> dict[str, Any]:
        """All options in one world."""
        return {**self.options, **self.tuned.get(world, {})}

    def changed(self, changes: Mapping[str, Any]) -> "Variant":
        """The variant with other options, under a name that lists them.

        >>> Variant("paper").changed({"english_weight": 0.2}).name
        'paper, english_weight 0.2'
        """
        name = ", ".join([self.name, *(f"{key} {value}" for key, value in changes.items())])
        return replace(self, name=name, options={**self.options, **changes}, tuned={})


def in_worlds(option: str, **values: Any) -> dict[str, dict[str, Any]]:
    """An option with a value per world.

    >>> in_worlds("middle_layer", mini=2)
    {'mini': {'middle_layer': 2}}
    """
    return {world: {option: value} for world, value in values.items()}


# The weights of KL and InfoNCE were chosen on the worlds' development sets, among two or three values each.
VARIANTS = (
    Variant(PAPER),
    Variant("cosine", {"distance_metric": "cosine"}),
    Variant("paper + similarity KL", tuned=in_worlds("similarity_weight", mini=0.1, captions=1.0)),
    Variant("paper + InfoNCE", tuned=in_worlds("contrastive_weight", mini=0.05, captions=1.0)),
    Variant(
        "paper + KL + InfoNCE",
        tuned={
            "mini": {"similarity_weight": 0.05, "contrastive_weight": 0.03},
            "captions": {"similarity_weight": 0.5, "contrastive_weight": 0.5},
        },
    ),
    Variant(
        "cosine + InfoNCE",
        {"distance_metric": "cosine"},
        in_worlds("contrastive_weight", mini=0.05, captions=1.0),
    ),
    Variant("English weight 0.2", {"english_weight": 0.2}),
    Variant("paper + middle layer", {"middle_weight": 0.1}, in_worlds("middle_layer", mini=2, captions=3)),
    Variant("two stages: texts, then images", stages=(Stage(0.5, 0.0), Stage(0.5, 1.0)), worlds=WITH_IMAGES),
    Variant("no rows with images", stages=(Stage(1.0, 0.0),), worlds=WITH_IMAGES),
    Variant("10 % rows with images", stages=(Stage(1.0, 0.1),), worlds=WITH_IMAGES),
    Variant("25 % rows with images", stages=(Stage(1.0, 0.25),), worlds=WITH_IMAGES),
    Variant("500 new tokens", {"new_tokens": 500}, worlds=("mini11",)),
    Variant(
        "cosine, 500 new tokens, 25 % rows with images",
        {"distance_metric": "cosine", "new_tokens": 500},
        stages=(Stage(1.0, 0.25),),
        worlds=("mini11",),
    ),
    Variant(
        "cosine, 2000 new tokens, 20 rows per update",
        {"distance_metric": "cosine", "new_tokens": 2000, "gradient_accumulation_steps": 1},
        worlds=("mini11",),
    ),
    Variant(
        "cosine, 3000 new tokens, ASCII too, 20 rows per update",
        {"distance_metric": "cosine", "new_tokens": 3000, "join_ascii": True, "gradient_accumulation_steps": 1},
        worlds=("mini11",),
    ),
    Variant("500 new tokens, trained first", {"new_tokens": 500, "embedding_steps": 30}, worlds=("mini11",)),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}


def find_variants(names: list[str] | None, world: str) -> list[Variant]:
    """The named variants, or all that are for a world.

    Raises:
        ValueError: an unknown name.
    """
    if names is None:
        return [variant for variant in VARIANTS if world in variant.worlds]
    for name in names:
        if name not in BY_NAME:
            raise ValueError(f"--variants {name!r}: unknown; choose among {', '.join(map(repr, BY_NAME))}")
    return [BY_NAME[name] for name in names]
