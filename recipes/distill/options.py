"""The options of `distill`: its own, and all of sentence-transformers' training arguments.

Importing this imports no torch, so that --help and refusals come at once.
"""

import dataclasses
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from xvlm2vec_st.utils.hub_names import check_folder

from ..shared.command import parse_languages

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformerTrainingArguments

TEMPERATURE = 0.05
# Options that name a model: a folder or a Hub id.
MODELS = ("student", "teacher", "adapter")
# Options that do nothing without one of others.
NEEDS = {
    "dora": ("lora_rank",),
    "embedding_steps": ("new_tokens",),
    "join_ascii": ("new_tokens",),
    "keep_adapter": ("lora_rank",),
    "lora_alpha": ("lora_rank",),
    "lora_dropout": ("lora_rank",),
    "temperature": ("similarity_weight", "contrastive_weight"),
    "middle_weight": ("middle_layer",),
    "new_tokens_for": ("new_tokens",),
}
# Options that --new-tokens rules out, why, and what to do.
BUILD_FIRST = "build it first (xvlm2vec build STUDENT START --extend-vocabulary FILE …), and pass --student START"
NOT_WITH_NEW_TOKENS = {
    "lora_rank": f"an adapter does not train embeddings, and those of new tokens must learn; leave --lora-rank out, or "
    f"{BUILD_FIRST}: new tokens then keep the mean of their pieces",
    "image_part": "the teacher keeps its own tokenizer, and the image-part terms need the same in both; "
    f"{BUILD_FIRST}, which is then the teacher too",
}


def option(text: str, **kwargs: Any) -> Any:
    """A dataclass field with a help text."""
    return field(metadata={"help": text}, **kwargs)


@dataclass
class DistillArguments:
    """What the student learns, and from what. `distill` takes it beside the training arguments.

    Raises:
        ValueError: an option that does nothing without another one; options that contradict each other;
            a language of --new-tokens-for that --languages lacks;
            a model's folder that is missing; LoRA with versions of transformers and peft that do not work
            together.

    >>> DistillArguments(student="owner/name", corpus=["parallel.jsonl"], languages=["it,es"]).languages
    ['it', 'es']
    """

    _argument_group_name: ClassVar[str] = "distillation"

    student: str = option("the English embedder to start from: folder or Hub id, raw or built")
    corpus: list[str] = option("JSON Lines files: id, image, en, and one column per language")
    languages: list[str] = option("target languages: it es fr de, or it,es,fr,de")
    adapter: str | None = option("LoRA or DoRA to merge into the student first: folder or Hub id", default=None)
    num_crops: int | None = option("Phi-3.5-vision: maximum tiles per image, plus the global view", default=None)
    teacher: str | None = option("default: the model that the student starts from, as in the paper", default=None)
    projection: bool = option(
        "allow a teacher of another width or pooling: learn a linear layer into its space", default=False
    )
    cache: str | None = option("folder that keeps the teacher's targets for later epochs and runs", default=None)
    images: str | None = option(
        "folder, zip, tar or parquet file of the images; default: the corpus' folder", default=None
    )
    outside_images: bool = option(
        "accept image paths that leave this folder: '..', absolute paths, links", default=False
    )
    check_images: bool = option(
        "open every image before training starts, or see that none has changed; --no-check-images does neither",
        default=True,
    )
    image_size: int | None = option(
        "resize training images to squares of this many pixels; default: keep their size", default=None
    )
    stream: bool = option("read the corpus while training, for corpora larger than memory", default=False)
    eval_rows: int = option("rows held out for evaluation; 0: none", default=200)
    eval_corpus: str | None = option("file of held-out rows, instead of --eval-rows", default=None)
    image_part: bool = option("add the image-part terms (the paper's L') to the loss", default=False)
    distance_metric: Literal["mse", "cosine"] = option("how states are compared; the paper's is mse", default="cosine")
    english_weight: float = option("weight of the English term; the translations have the rest", default=0.5)
    similarity_weight: float = option("weight of the KL term over the batch's similarities", default=0.0)
    contrastive_weight: float = option("weight of the InfoNCE term over translation pairs", default=0.0)
    temperature: float | None = option(
        f"of the similarities, with --similarity-weight or --contrastive-weight; default: {TEMPERATURE}", default=None
    )
    middle_layer: int | None = option("compare the states after this layer of the language model too", default=None)
    middle_weight: float | None = option("weight of that term, with --middle-layer; default: 1", default=None)
    matryoshka_dims: list[int] = option("train these leading dimensions too: 3072 512 128", default_factory=list)
    lora_rank: int | None = option("train a LoRA on the language model; default: all weights but vision", default=None)
    lora_alpha: int | None = option("default: twice the rank", default=None)
    lora_dropout: float = option("dropout on the LoRA's input", default=0.0)
    dora: bool = option("train weight-decomposed LoRA", default=False)
    keep_adapter: bool = option("save the adapter, not the merged weights", default=False)
    train_vision: bool = option("train, or adapt, the vision tower and projector too", default=False)
    tokens_per_batch: int | None = option(
        "maximum tokens per device and step; the batch size still caps the rows", default=None
    )
    muon_learning_rate: float | None = option(
        "use Muon at this rate for hidden matrices, Adam for the rest", default=None
    )
    new_tokens: int | None = option(
        "add up to so many tokens to the student's vocabulary, chosen from --corpus", default=None
    )
    new_tokens_for: list[str] = option(
        "languages that get them; the texts of the other ones are cut as before; default: --languages",
        default_factory=list,
    )
    join_ascii: bool = option(
        "with --new-tokens: let them hold ASCII letters alone, as Polish or Dutch need", default=False
    )
    embedding_steps: int | None = option(
        "with --new-tokens: updates that train the new tokens' embeddings alone, before all else learns", default=None
    )
    overwrite: bool = option("replace the output folder, and drop an unfinished run", default=False)

    def __post_init__(self) -> None:
        for name in (*MODELS, "cache", "images", "eval_corpus"):
            if getattr(self, name) is not None:
                setattr(self, name, os.path.expanduser(getattr(self, name)))
        self.corpus = [os.path.expanduser(path) for path in self.corpus]
        self.languages = parse_languages(self.languages)
        self.new_tokens_for = parse_languages(self.new_tokens_for)
        if self.lora_rank:
            from xvlm2vec_st.utils.peft_version import check_peft  # it imports transformers, which takes a second

            check_peft("--lora-rank")
        for name in MODELS:
            check_folder(getattr(self, name))
        if self.muon_learning_rate == 0:
            raise ValueError("--muon-learning-rate 0.0: pass a rate above 0, or leave it out")
        for name, others in NEEDS.items():
            if getattr(self, name) and not any(getattr(self, other) for other in others):
                needed = " or ".join(map(dashed, others))
                raise ValueError(f"{dashed(name)} does nothing without {needed}; pass both, or leave it out")
        if other := [code for code in self.new_tokens_for if code not in self.languages]:
            raise ValueError(
                f"--new-tokens-for {other[0]}: not among --languages {' '.join(self.languages)}; add it there"
            )
        for name, reason in NOT_WITH_NEW_TOKENS.items():
            if self.new_tokens and getattr(self, name):
                raise ValueError(f"{dashed(name)} with --new-tokens: {reason}")
        if self.keep_adapter and (self.adapter or self.num_crops):
            raise ValueError(
                "--keep-adapter: the saved adapter names its base folder, and --adapter and --num-crops build "
                "a temporary one; build it first (xvlm2vec build STUDENT START --adapter …), and pass "
                "--student START"
            )

    @property
    def evaluates(self) -> bool:
        """Whether rows are held out."""
        return bool(self.eval_rows or self.eval_corpus)

    @property
    def corpus_files(self) -> list[Path]:
        """All files of rows, the held-out ones last."""
        return [Path(path) for path in (*self.corpus, *([self.eval_corpus] if self.eval_corpus else ()))]


def default_report_to() -> str:
    """TensorBoard where it is installed."""
    return "tensorboard" if find_spec("tensorboard") or find_spec("tensorboardX") else "none"


@dataclass
class TrainingDefaults:
    """The training arguments whose default or help text is the paper's, or ours: see `DistillTrainingArguments`."""

    _argument_group_name: ClassVar[str] = "training (SentenceTransformerTrainingArguments)"

    output_dir: str = option("the new folder")
    per_device_train_batch_size: int = option("rows per step and device", default=32)
    num_train_epochs: float = option("passes over the corpus", default=1.0)
    learning_rate: float = option("peak learning rate", default=1e-5)
    lr_scheduler_type: str = option("schedule after the warm-up", default="cosine")
    max_grad_norm: float = option("gradient clipping", default=0.3)
    logging_steps: float = option("updates between log entries", default=20)
    save_total_limit: int | None = option("checkpoints that are kept", default=2)
    seed: int = option("of the data order, held-out rows and adapter weights", default=0)
    report_to: str = option("tensorboard, wandb, … or none", default_factory=default_report_to)
    # transformers hides the bar where its warnings are off.
    disable_tqdm: bool | None = option("no progress bars", default=False)


def __getattr__(name: str) -> Any:
    # In a module of its own, because it imports torch.
    if name != "DistillTrainingArguments":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".training_arguments", __package__), name)


# The training arguments that decide the weights: a resumed run must have the same.
FIXED = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "optim"),
    *("optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "label_smoothing_factor", "neftune_noise_alpha", "bf16", "fp16", "tf32", "seed"),
    *("data_seed", "full_determinism", "learning_rate_mapping", "load_best_model_at_end"),
    *("metric_for_best_model", "greater_is_better", "eval_steps", "eval_strategy"),
)
# Our own options that may change: no weight depends on them.
FREE = ("cache", "check_images", "overwrite")


def check_pair(arguments: DistillArguments, training: "SentenceTransformerTrainingArguments") -> None:
    """Check options of both kinds against each other.

    Raises:
        ValueError: evaluations without held-out rows.
    """
    if training.eval_strategy != "no" and not arguments.evaluates:
        raise ValueError(
            f"--eval-steps {training.eval_steps:g} with --eval-rows 0: no rows to evaluate on; hold some out, "
            "pass --eval-corpus FILE, or leave --eval-steps out"
            if training.eval_steps
            else f"--eval-strategy {training.eval_strategy.value} with --eval-rows 0: no rows to evaluate on"
        )


def dashed(name: str) -> str:
    """An option as on the command line.

    >>> dashed("keep_adapter")
    '--keep-adapter'
    """
    return "--" + name.replace("_", "-")


def run_settings(arguments: DistillArguments, training: "SentenceTransformerTrainingArguments") -> dict[str, Any]:
    """The options and rows that decide a run's weights, as JSON values; each path in one spelling."""
    settings = {key: value for key, value in vars(arguments).items() if key not in FREE}
    for key in (*MODELS, "images", "eval_corpus"):
        if settings[key] and Path(settings[key]).exists():
            settings[key] = str(Path(settings[key]).resolve())
    settings["corpus"] = [str(Path(path).resolve()) for path in arguments.corpus]
    values = training.to_dict()
    settings |= {key: values[key] for key in FIXED if key in values}
    rows, digests = zip(*map(count_rows, arguments.corpus_files), strict=True)
    return settings | {
        "processes": training.world_size,
        "corpus_rows": [*rows],
        "corpus_digests": [*digests],
    }


def count_rows(path: Path) -> tuple[int, str]:
    """(rows, digest) of a corpus file; (0, …) for a missing file, which is reported later.

    The number of rows decides the order in training; texts may be corrected between two runs.
    """
    rows, digest = 0, hashlib.blake2b(digest_size=16)
    with path.open("rb") if path.is_file() else io.BytesIO() as file:
        for line in file:
            digest.update(line)
            rows += not line.isspace()
    return rows, digest.hexdigest()


def split_fields(values: dict[str, Any], kinds: Sequence[type]) -> list[dict[str, Any]]:
    """The values of each dataclass of `kinds`."""
    return [
        {each.name: values[each.name] for each in dataclasses.fields(kind) if each.name in values} for kind in kinds
    ]
