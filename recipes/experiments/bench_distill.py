"""One distillation step, one image in five languages: shared prefixes against two plain loops.

    python -m recipes.experiments.bench_distill                                  # tiny width, true lengths
    python -m recipes.experiments.bench_distill --geometry phi3_v --rows 1       # 4.1 B random weights, one GPU
    python -m recipes.experiments.bench_distill --document docs/performance.md   # and keep the table there

Routes to the same loss and gradients, from rows to gradients, preprocessing included:
* published: for each pair (row, language) the teacher's English, the student's English, the student's
  translation, as the released training loop has it;
* MSELoss: sentence-transformers' own over the same pairs, with targets that cost nothing;
* shared: `MultilingualDistillationLoss`, a frozen copy as teacher, which takes the student's image features;
* shared, cached targets: the same with the teacher's targets on disk (`cache=`), as from the second epoch on;
* adapter: the same with a LoRA student that is its own teacher (its gradients are the adapter's).
"""

import copy
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers.sentence_transformer.losses import MSELoss
from torch import Tensor
from torch.nn.functional import mse_loss

from xvlm2vec_st import MultilingualDistillationLoss, SentenceTransformer, build, lora_config
from xvlm2vec_st.data.collator import ParallelCollator
from xvlm2vec_st.data.corpus import SOURCE

from ..shared.command import parser_of, run
from ..shared.markup import markdown_table
from .bench_model import GEOMETRIES, write_checkpoint
from .measure import costs, keep_table

LANGUAGES = ("it", "es", "fr", "de")
HEADER = ("s", "times slower", "FLOPs", "times more FLOPs", "peak, MB", "gradients differ by")


def corpus(folder: Path, rows: int) -> list[dict[str, Any]]:
    """Rows of 20 to 60 byte tokens in each language, an image each."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    lines = []

    def text() -> str:
        return "x".join(str(rng.randrange(1000)) for _ in range(rng.randint(5, 15)))

    for number in range(rows):
        image = folder / f"{number}.png"
        Image.fromarray(noise.integers(0, 255, (336, 336, 3), np.uint8)).save(image)
        texts = {code: text() for code in (SOURCE, *LANGUAGES)}
        lines.append({"id": str(number), "image": str(image), **texts})
    return lines


def pairs(rows: Sequence[dict[str, Any]]) -> tuple[list[dict], list[dict]]:
    """English and translated inputs, a (row, language) each."""

    def build_input(row: dict[str, Any], code: str) -> dict[str, Any]:
        return {"image": Image.open(row["image"]).convert("RGB"), "text": row[code]}

    each = [(row, code) for row in rows for code in LANGUAGES]
    return [build_input(row, SOURCE) for row, _ in each], [build_input(row, code) for row, code in each]


def stock(model: SentenceTransformer) -> Callable[[list], dict[str, Tensor]]:
    """Preprocess as sentence-transformers does, without shared prefixes."""
    plain = super(type(model[0]), model[0]).preprocess
    return lambda items: {
        key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in plain(items).items()
    }


def pooled(model: SentenceTransformer, features: dict[str, Any]) -> Tensor:
    """The last token's state, not normalised."""
    return model[1](model[0](dict(features)))["sentence_embedding"].float()


def published(student: SentenceTransformer, teacher: SentenceTransformer, rows: list[dict]) -> None:
    """Three forwards a pair, then backward."""
    english, translated = (stock(student)(items) for items in pairs(rows))
    with torch.no_grad():
        target = pooled(teacher, english)
    loss = mse_loss(pooled(student, english), target) + mse_loss(pooled(student, translated), target)
    (loss / 2).backward()


def stock_mse(student: SentenceTransformer, target: Tensor, rows: list[dict]) -> None:
    """sentence-transformers' MSELoss, targets given."""
    loss = MSELoss(torch.nn.Sequential(student[0], student[1]))
    loss([stock(student)(items) for items in pairs(rows)], target).backward()


def shared(loss: MultilingualDistillationLoss, rows: list[dict]) -> None:
    """Ours, as the trainer runs it."""
    collate = ParallelCollator(loss.model.preprocess, languages=LANGUAGES, shared=True, inputs=loss.needs_inputs)
    batch = collate(rows)
    features = {key.removeprefix("texts_"): value for key, value in batch.items()}
    moved = {k: v.to(loss.model.device) if isinstance(v, Tensor) else v for k, v in features.items()}
    sum(loss([moved]).values()).backward()


def on_route(route: str, loss: MultilingualDistillationLoss, rows: list[dict]) -> None:
    """Ours, on one route for student and teacher."""
    for model in (loss.model, loss.teacher.model):
        model[0].sharing = route
    shared(loss, rows)


def gradients(model: SentenceTransformer, run: Callable[[], None]) -> dict[str, Tensor]:
    """Gradients of one step, on the CPU: four routes of a 4 B model do not fit one GPU."""
    model.zero_grad()
    run()
    copies = {name: p.grad.to("cpu", copy=True) for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return copies


def difference(plain: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest relative difference of a parameter's gradients; small ones against 1/1000 of the rest."""
    norms = {name: gradient.float().norm().item() for name, gradient in plain.items()}
    floor = max(norms.values()) / 1000
    return max((plain[n].float() - other[n].float()).norm().item() / max(norms[n], floor) for n in plain)


def measure_routes(folder: str, rows: list[dict], repeats: int) -> list[list[str]]:
    """The table's rows."""
    teacher, student, adapted = (SentenceTransformer(folder) for _ in range(3))
    for part in ("vision_embed_tokens", "vision_tower", "visual"):
        for name, parameter in student.named_parameters():
            if part in name:
                parameter.requires_grad_(False)
    with torch.no_grad():  # a student that has moved, else every gradient is zero; what is frozen does not move
        for parameter in filter(lambda parameter: parameter.requires_grad, student.parameters()):
            parameter.add_(0.05 * parameter.std().nan_to_num(0.0) * torch.randn_like(parameter))
    adapted.add_adapter(lora_config(adapted, rank=8, alpha=16))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    ours = MultilingualDistillationLoss(student, teacher)
    cached = MultilingualDistillationLoss(student, teacher, cache=Path(folder) / "targets")
    own = MultilingualDistillationLoss(adapted)
    with torch.no_grad():
        target = pooled(teacher, stock(teacher)(pairs(rows)[0]))
    twin = copy.copy(adapted)
    routes: dict[str, tuple[Any, Callable[[], None], str]] = {
        "published": (student, lambda: published(student, teacher, rows), "published"),
        "MSELoss": (student, lambda: stock_mse(student, target, rows), "published"),
        "shared": (student, lambda: on_route("packed", ours, rows), "published"),
        "branched": (student, lambda: on_route("branched", ours, rows), "published"),
        "shared, cached targets": (student, lambda: on_route("packed", cached, rows), "published"),
        "adapter": (adapted, lambda: shared(own, rows), "adapter, published"),
    }
    base = gradients(student, routes["published"][1])
    adapter_base = gradients(adapted, lambda: published(twin, teacher, rows))
    all_gradients = {name: gradients(model, run) for name, (model, run, _) in routes.items()}
    spent = costs({name: run for name, (_, run, _) in routes.items()}, repeats=repeats)
    cells = []
    for name, cost in spent.items():
        one = spent["shared"]
        peak = "–" if cost.peak is None else f"{cost.peak / 2**20:.0f}"
        differ = difference(adapter_base if name == "adapter" else base, all_gradients[name])
        ratios = [
            f"{cost.seconds:.2f}",
            f"{cost.seconds / one.seconds:.2f}",
            f"{cost.flops:.2e}",
            f"{cost.flops / one.flops:.2f}",
        ]
        cells.append([name, *ratios, peak, "–" if name == "published" else f"{differ:.0e}"])
    return cells


def main(argv: Sequence[str] | None = None) -> list[list[str]]:
    """Measure and print; write the table to a document if asked to. Returns the table's rows."""
    parser = parser_of(__doc__)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="tiny")
    parser.add_argument("--rows", type=int, default=4, help="a step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--document", type=Path, help="the document to write the table to")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        raw = write_checkpoint(Path(folder) / "raw", args.geometry)
        built = str(build(raw, Path(folder) / "model"))
        cells = measure_routes(built, corpus(Path(folder), args.rows), args.repeats)
    text = markdown_table(["", *HEADER], cells)
    print(text)
    keep_table(args.document, "bench_distill", argv, text, section=f"bench_distill {args.geometry}")
    return cells


if __name__ == "__main__":
    run(main)
