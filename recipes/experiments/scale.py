"""What the full run takes: tokens, operations, memory, and hours at a rate, for 1 to 64 GPUs.

    python -m recipes.experiments.scale                                            # tokens and operations
    python -m recipes.experiments.scale --rate 400 --device "H100, 400 TFLOP/s"    # hours at your rate

The operations follow a formula over the published geometry. tests/test_distill_scale.py compares the formula with
the operations that PyTorch counts on a small model of the same kind.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xvlm2vec_st.phi3v import Phi3VConfig

from ..shared.command import parser_of, run
from ..shared.markup import markdown_table
from .measure import replace_section

PAIRS, LANGUAGES = 724_000, 4  # arXiv 2503.09313; four translations per text
IMAGE_TOKENS = 757  # 1344 x 1344 pixels at num_crops 4
GPUS = (1, 4, 8, 64)
HEADER = ("route", "decoder tokens", "FLOPs", *(f"{count} GPU{'s'[: count > 1]}, h" for count in GPUS))


@dataclass(frozen=True)
class Geometry:
    """Sizes that decide how many operations a forward takes."""

    hidden: int
    intermediate: int
    layers: int
    key_values: int
    vision_hidden: int
    vision_intermediate: int
    vision_layers: int
    patches: int

    @classmethod
    def of(cls, config: Phi3VConfig) -> "Geometry":
        """From a configuration of Phi-3.5-vision."""
        tower, text = config.vision_config, config.get_text_config()
        heads = text.hidden_size // text.num_attention_heads
        return cls(
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            layers=text.num_hidden_layers,
            key_values=heads * text.num_key_value_heads,
            vision_hidden=tower.hidden_size,
            vision_intermediate=tower.intermediate_size,
            vision_layers=tower.num_hidden_layers - 1,  # states of the last but one are taken
            patches=(tower.image_size // tower.patch_size) ** 2,
        )

    @property
    def decoder_weights(self) -> int:
        """Weights of the decoder's matrices."""
        attention = 2 * self.hidden * (self.hidden + self.key_values)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def decoder(self, width: int) -> int:
        """Operations of a forward over one packed row of `width` places, masked ones included."""
        return 2 * width * self.decoder_weights + self.layers * 4 * width * width * self.hidden

    def vision(self, crops: int, tokens: int) -> int:
        """Operations of the tower over `crops` squares, and of the projection of `tokens`."""
        places, wide = self.patches + 1, self.vision_hidden
        weights = 4 * wide * wide + 2 * wide * self.vision_intermediate
        blocks = self.vision_layers * (2 * places * weights + 4 * places * places * wide)
        stem = 2 * self.patches * 3 * 14 * 14 * wide
        return crops * (blocks + stem) + 2 * tokens * (4 * wide * self.hidden + self.hidden * self.hidden)


@dataclass(frozen=True)
class Row:
    """An English text with its translations: tokens of each text, and crops of the image, the whole too."""

    text: int
    languages: int = LANGUAGES
    image: int = IMAGE_TOKENS
    crops: int = 5

    def shared(self, geometry: Geometry, passes: int, learns_vision: bool) -> tuple[int, int]:
        """(places in the decoder, operations): English for the teacher, one packed row for the student."""
        packed, english = self.image + (1 + self.languages) * self.text, self.image + self.text
        seeing = geometry.vision(self.crops, self.image)
        student = passes * geometry.decoder(packed) + (passes if learns_vision else 1) * seeing
        return packed + english, student + geometry.decoder(english) + seeing

    def published(self, geometry: Geometry, passes: int, learns_vision: bool) -> tuple[int, int]:
        """The same for the released loop: three forwards a pair, each over the image."""
        row = self.image + self.text
        seeing = geometry.vision(self.crops, self.image)
        forward = geometry.decoder(row)
        student = 2 * (passes * forward + (passes if learns_vision else 1) * seeing)
        return 3 * self.languages * row, self.languages * (student + forward + seeing)


def memory(weights: int, gpus: int, *, trained: int, teacher: bool) -> float:
    """GB a GPU of weights, gradients and Adam in shards, and of the frozen teacher in bf16.

    A trained weight takes 16 bytes (fp32 weight, gradient, two moments), a frozen one 2; activations
    come on top.

    >>> round(memory(1_000_000_000, 8, trained=1_000_000_000, teacher=True), 1)
    4.0
    """
    own = 16 * trained + 2 * (weights - trained)
    return (own / gpus + (2 * weights if teacher else 0)) / 1e9


def plan(row: Row, rate: float | None) -> list[list[str]]:
    """The table's rows: each route, with hours at the rate (FLOP/s), if there is one, and perfect scaling."""
    geometry = Geometry.of(Phi3VConfig())
    count = PAIRS // row.languages
    cells = []
    for name, route, passes, vision in (
        ("shared prefixes", row.shared, 4, True),
        ("shared prefixes, LoRA", row.shared, 3, False),
        ("published loop", row.published, 4, True),
    ):
        tokens, flops = route(geometry, passes, vision)
        hours = [f"{count * flops / (rate * gpus) / 3600:,.1f}" for gpus in GPUS] if rate else []
        cells.append([name, f"{count * tokens:.2e}", f"{count * flops:.2e}", *hours])
    return cells


def main(argv: Sequence[str] | None = None) -> list[list[str]]:
    """Count, print, and write the table to a document if asked to; returns the table's rows."""
    parser = parser_of(__doc__)
    parser.add_argument("--text", type=int, default=30, help="tokens per text")
    parser.add_argument("--rate", type=float, help="TFLOP/s per GPU, for a table of hours")
    parser.add_argument("--device", help="what the rate belongs to; needed with --rate")
    parser.add_argument("--document", type=Path, help="the document to write the table to")
    args = parser.parse_args(argv)
    if (args.rate is None) != (args.device is None):
        raise ValueError("--rate and --device go together: a rate is that of a device")
    rows = plan(Row(args.text), args.rate and args.rate * 1e12)
    text = markdown_table(HEADER if args.rate else HEADER[:3], rows)
    if args.rate:
        text = f"At the rate of one {args.device}:\n\n{text}"
    print(text)
    if args.document:
        command = "python -m recipes.experiments.scale " + shlex.join(sys.argv[1:] if argv is None else argv)
        replace_section(args.document, "scale given", f"    {command}\n\n{text}")
    return rows


if __name__ == "__main__":
    run(main)
