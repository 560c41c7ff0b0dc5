"""Which numbers the recipes' options take."""

import argparse
from typing import NamedTuple


class Bounds(NamedTuple):
    """The least and the greatest value; `above`: the least itself is none."""

    low: float
    high: float
    above: bool = False

    def hold(self, value: float) -> bool:
        """Whether `value` lies between them; what is not a number does not.

        >>> Bounds(0, 1, above=True).hold(0), Bounds(0, 1).hold(float("nan")), Bounds(0, 1).hold(1)
        (False, False, True)
        """
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def advice(self, value: float) -> str:
        """What to pass where `value` does not hold.

        >>> Bounds(1, 64).advice(0), Bounds(1, 64).advice(65), Bounds(0, 1, above=True).advice(0)
        ('1 or more', '64 or less', 'a number above 0')
        """
        if value > self.high:
            return f"{self.high:.0f} or less"
        return f"a number above {self.low:g}" if self.above else f"{self.low:g} or more"


COUNT = Bounds(1, 10**9)
COUNT_OR_NONE = Bounds(0, 10**9)
RATE = Bounds(0, 10, above=True)
SHARE = Bounds(0, 1)
STEPS = Bounds(0, 10**9, above=True)

# The upper bounds refuse slips, as 1e20 for 1e-20, before a run hangs on them or fills the memory.
BOUNDS = {
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "batch_size": Bounds(1, 10**6),
    "batch_sizes": Bounds(1, 10**6),
    "beams": Bounds(1, 100),
    "contrastive_weight": Bounds(0, 10**6),
    "dataloader_num_workers": Bounds(0, 1024),
    "embedding_steps": COUNT,
    "english_weight": SHARE,
    "eval_rows": COUNT_OR_NONE,
    "eval_steps": STEPS,
    "gradient_accumulation_steps": Bounds(1, 10**6),
    "image_size": Bounds(1, 16384),
    "learning_rate": RATE,
    "limit": COUNT,
    "logging_steps": STEPS,
    "lora_alpha": Bounds(1, 10**6),
    "lora_dropout": SHARE,
    "lora_rank": Bounds(1, 65536),
    "matryoshka_dims": COUNT,
    "max_steps": COUNT,
    "max_grad_norm": Bounds(0, 10**6),
    "middle_layer": COUNT,
    "middle_weight": Bounds(0, 10**6),
    "mini": Bounds(1, 10**7),
    "muon_learning_rate": Bounds(0, 10),
    "new_tokens": Bounds(1, 10**6),
    "num_train_epochs": Bounds(0, 10**6, above=True),
    "per_device_eval_batch_size": Bounds(1, 10**6),
    "per_device_train_batch_size": Bounds(1, 10**6),
    "num_crops": Bounds(1, 1024),
    "quality_min": Bounds(-1, 1),
    "queries": Bounds(1, 10**6),
    "rate": Bounds(0, 10**6, above=True),
    "rehearsal": Bounds(0, 1, above=True),
    "repeats": Bounds(1, 10**6),
    "resamples": Bounds(1, 10**6),
    "rows": Bounds(1, 10**7),
    "save_steps": STEPS,
    "scenes": Bounds(1, 10**7),
    "seed": Bounds(0, 2**32 - 1),
    "similarity_weight": Bounds(0, 10**6),
    "steps": COUNT,
    "temperature": Bounds(0, 1000, above=True),
    "text": Bounds(1, 10**6),
    "tokens_per_batch": COUNT,
    "tower_steps": COUNT,
    "warmup_steps": COUNT_OR_NONE,
    "weight_decay": Bounds(0, 100),
}


def check_numbers(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse numbers that a run cannot use; an option's default stands for itself.

    Raises:
        ValueError: the first of them, with what is allowed.
    """
    for action in parser._actions:
        if action.type not in (int, float):
            continue
        option_value = getattr(args, action.dest)
        for value in option_value if isinstance(option_value, list) else [option_value]:
            if value is None or value == action.default:
                continue
            # transformers checks the other training arguments itself.
            bounds = BOUNDS.get(action.dest)
            if bounds is not None and not bounds.hold(value):
                option = "--" + action.dest.replace("_", "-")
                raise ValueError(f"{option} {value}: pass {bounds.advice(value)}, or leave it out")
