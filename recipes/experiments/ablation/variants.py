"""The variants that are compared: what each changes in the paper's recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

PAPER = "paper"


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
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stages: tuple[Stage, ...] = (Stage(),)

    @property
    def needs_images(self) -> bool:
        """Whether the variant is about rows with images."""
        return any(stage.image_share is not None for stage in self.stages)

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


VARIANTS = (
    Variant(PAPER),
    Variant("cosine", {"distance_metric": "cosine"}),
    Variant("paper + similarity KL", {"similarity_weight": 1.0}),
    Variant("paper + InfoNCE", {"contrastive_weight": 0.3}),
    Variant("paper + KL + InfoNCE", {"similarity_weight": 0.5, "contrastive_weight": 0.15}),
    Variant("cosine + InfoNCE", {"distance_metric": "cosine", "contrastive_weight": 0.3}),
    Variant("English weight 0.2", {"english_weight": 0.2}),
    Variant("paper + middle layer", {"middle_layer": 3, "middle_weight": 0.1}),
    Variant("two stages: texts, then images", stages=(Stage(0.5, 0.0), Stage(0.5, 1.0))),
    Variant("no rows with images", stages=(Stage(1.0, 0.0),)),
    Variant("10 % rows with images", stages=(Stage(1.0, 0.1),)),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}


def find_variants(names: list[str] | None, *, images: bool) -> list[Variant]:
    """The named variants, or all that make sense for a world with or without images.

    Raises:
        ValueError: an unknown name.
    """
    if names is None:
        return [variant for variant in VARIANTS if images or not variant.needs_images]
    for name in names:
        if name not in BY_NAME:
            raise ValueError(f"--variants {name!r}: unknown; choose among {', '.join(map(repr, BY_NAME))}")
    return [BY_NAME[name] for name in names]
