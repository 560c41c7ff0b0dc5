"""Score, distil and score again, offline on two CPU cores.

    xvlm2vec demo                                           # about 6 minutes, writes ./xvlm2vec
    xvlm2vec demo --out /tmp/d --steps 30 --queries 50      # a short run of the same code

The bundled English mini embedder learns Italian, Spanish, French and German with the xVLM2Vec loss. It is
scored on MMMEBMini before and after, and once more over the candidates that the English embedder has embedded
in English: does an index that exists stay valid? Unfinished work lies in OUT.demo. OUT appears when the run has
finished, with its report in OUT/report. At the end, the English embedder indexes a folder of images, and the
student searches it in five languages: OUT/images and OUT/index, which `xvlm2vec serve` opens.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

from mmmeb_tasks.data.layout import KINDS
from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.world import LANGUAGES
from mmmeb_tasks.mini.write import QUERIES, write_benchmark, write_corpus
from xvlm2vec_st.utils.folders import Destination, expanded

from .distill.options import DistillArguments
from .image_search.extras import require
from .shared.command import parser_of, run_prepared

# Files and folders that the steps write in OUT.demo.
STEPS = ("data*", "corpus*", "model*")
LIBRARIES = ("torch", "transformers", "sentence-transformers", "mteb", "datasets", "accelerate", "pillow")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=expanded, default=Path("xvlm2vec"))
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--scenes", type=int, default=6000, help="training scenes, two corpus rows each")
    parser.add_argument("--steps", type=int, default=450, help="weight updates")
    parser.add_argument("--batch-size", type=int, default=40, help="rows per update, five texts each")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of embeddings and norms")
    parser.add_argument("--muon-learning-rate", type=float, default=0.01, help="learning rate of all other matrices")
    parser.add_argument("--queries", type=int, default=QUERIES, help="queries per task and language")
    parser.add_argument("--tasks", nargs="+", choices=KINDS, default=list(KINDS), help="tasks that are scored")
    parser.add_argument("--eval-rows", type=int, default=200, help="rows held out while training")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the demo as the command line says; returns the finished folder."""
    return run_demo(parse_args(argv))


def prepare() -> Callable[[], object]:
    """The demo that the command line asks for, with the libraries imported that its steps need."""
    args = parse_args(None)
    require("lancedb", "search")  # now, not after the training
    import datasets  # noqa: F401
    import mteb  # noqa: F401
    import sentence_transformers  # noqa: F401

    return partial(run_demo, args)


def run_demo(args: argparse.Namespace) -> Path:
    """Run the demo; returns the finished folder."""
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "overwrite")}
    place = Destination(
        args.out,
        overwrite=args.overwrite,
        suffix=".demo",
        command="recipes.demo",
        after=lambda: search_images(args.out),
    )
    with place.hold():
        # An interrupted demo starts again, unless only the last move or the search is missing.
        if place.begin(settings, early=STEPS):
            print(f"Done: {args.out}")
        else:
            run_in(place, args)
            show_use(args.out)
    return args.out


def run_in(place: Destination, args: argparse.Namespace) -> None:
    """Run the steps that make the student and its report, in the work folder."""
    # They import torch, which --help does without.
    from sentence_transformers import SentenceTransformer

    from mmmeb_tasks.mini.tasks import evaluate_mini

    from .shared.report import contact_sheet, languages_chart, score_table

    work, clock = place.work, Clock()

    print("1/7  The mini world: scenes of emoji, named in five languages, and an English-only embedder")
    data = write_benchmark(work / "data", queries=args.queries)
    corpus = write_corpus(work / "corpus", scenes=args.scenes)
    clock.lap("world")

    print("2/7  Scoring the teacher: MMMEBMini in five languages")
    teacher = SentenceTransformer(str(TEACHER))
    before = evaluate_mini(teacher, data_root=data, tasks=args.tasks)
    clock.lap("score_teacher")

    print("3/7  Distilling: the student learns to embed it, es, fr, de as the teacher embeds English")
    built = distill_teacher(args, corpus / "parallel.jsonl", work / "model")
    clock.lap("distil")

    print("4/7  Scoring the student, then its queries on the teacher's English candidates")
    student = SentenceTransformer(str(built))
    after = evaluate_mini(student, data_root=data, tasks=args.tasks)
    clock.lap("score_student")
    on_index = evaluate_mini(student, data_root=data, tasks=args.tasks, index=teacher, index_language="en")
    clock.lap("score_index")
    print(score_table(before, after, on_index))

    print("5/7  Writing the report")
    report = built / "report"
    report.mkdir()
    languages_chart(before, after, report / "languages.png")
    contact_sheet(teacher, student, data, report)
    clock.lap("report")
    versions = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    scores = {"teacher": before, "student": after, "student_on_teacher_index": on_index}
    scores |= {"seconds": clock.seconds, "versions": versions}
    (report / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")

    minutes = sum(clock.seconds.values()) / 60
    print(f"6/7  After {minutes:.1f} minutes, the student goes to {args.out}; see {args.out}/report/contact.html")
    place.finish(built)


def search_images(student: Path) -> None:
    """Index images with the teacher, search them with the student; writes `images` and `index` into its folder."""
    from sentence_transformers import SentenceTransformer

    from .image_search.indexing import build_index
    from .image_search.mini_search import search_mini_images, write_mini_images
    from .image_search.options import parse_index_args
    from .image_search.store import ImageIndex

    print("7/7  Searching images: the teacher indexes them, the student finds them in five languages")
    images, place = student / "images", student / "index"
    write_mini_images(images)
    build_index(parse_index_args([str(images), "--model", str(TEACHER), "--out", str(place)]))
    index = ImageIndex.open(place)
    for name, model in (("teacher", TEACHER), ("student", student)):
        hits = search_mini_images(index, SentenceTransformer(str(model)), LANGUAGES)
        shares = "  ".join(f"{language} {100 * own.mean():.1f} %" for language, own in hits.items())
        print(f"     {name}: the image of a name comes first: {shares}")


def show_use(out: Path) -> None:
    """Print what to do with the student."""
    print("Search by text or image, in the terminal or on a page:\n")
    print(f'    xvlm2vec search {out}/index "mela rossa" --model {out} --limit 3')
    print(f"    xvlm2vec serve {out}/index --student {out}\n")
    print("Use the model:\n")
    print("    from sentence_transformers import SentenceTransformer")
    print(f'    model = SentenceTransformer("{out}")')
    print('    model.encode(["mela rossa", {"image": "a.jpg"}, {"image": "a.jpg", "text": "Was ist das?"}])')


def distill_teacher(args: argparse.Namespace, corpus: Path, out: Path) -> Path:
    """Train the student from the bundled teacher; returns its folder."""
    from .distill.command import distill
    from .distill.training_arguments import DistillTrainingArguments

    arguments = DistillArguments(
        student=str(TEACHER),
        corpus=[str(corpus)],
        languages=[language for language in LANGUAGES if language != "en"],
        eval_rows=args.eval_rows,
        muon_learning_rate=args.muon_learning_rate,
    )
    training = DistillTrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=args.batch_size,
        max_steps=args.steps,
        learning_rate=args.learning_rate,
        warmup_steps=args.steps // 20,
        max_grad_norm=1.0,
        eval_steps=max(args.steps // 2, 1) if args.eval_rows else None,
        report_to="none",
        seed=args.seed,
    )
    return distill(arguments, training)


class Clock:
    """Measure the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.time()

    def lap(self, name: str) -> None:
        """Store the seconds since the last lap under `name`."""
        now = time.time()
        self.seconds[name] = round(now - self._last, 1)
        self._last = now


if __name__ == "__main__":
    run_prepared(prepare)
