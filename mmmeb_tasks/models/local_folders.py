"""Models that run by name: local folders, `xvlm2vec`, the baselines of the paper."""

import importlib
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction

from mmmeb_tasks.instructions import STYLES, Style
from mmmeb_tasks.models.model_meta import OwnMeta
from mmmeb_tasks.utils.folders import read_object

if TYPE_CHECKING:
    from mmmeb_tasks.models.encoder import MMMEBEncoder

# Made by `make demo` and by `recipes.distill`; no folder of it comes with the package.
DEFAULT_MODEL = "xvlm2vec"

# Types of checkpoints with one tower for images and one for texts.
APART = ("align", "altclip", "chinese_clip", "clip", "siglip", "siglip2")

# Of a model's folder, what decides its embeddings; a card, a report or a log does not.
WEIGHTS = (".safetensors", ".bin", ".pt", ".json", ".jinja", ".txt", ".model", ".py")
SETTINGS = "config_sentence_transformers.json"  # prompts, and versions of packages
LEFT_OUT = ("trainer_state.json",)  # holds dates
LEFT_OUT_FOLDERS = ("report", "checkpoints", "runs", "results")


class Registry(dict[str, ModelMeta]):
    """mteb's registry; a name that is a local folder of a model is in it, too."""

    def __init__(self, known: Mapping[str, ModelMeta]) -> None:
        """Take over what is known, and add the baselines."""
        from mmmeb_tasks.models.baselines import BASELINES

        super().__init__(known)
        self.update({str(meta.name): meta for meta in BASELINES if meta.name not in known})

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and is_local(name))

    def __missing__(self, name: str) -> ModelMeta:
        if is_local(name):
            return folder_meta(Path(name))
        raise KeyError(name)


def is_local(name: str) -> bool:
    """Whether a name can only be a folder, or is one that holds a model."""
    return name == DEFAULT_MODEL or name.startswith((".", "/", "~")) or is_model(Path(name))


def is_model(folder: Path) -> bool:
    """Whether a folder holds a sentence-transformers model or a raw checkpoint."""
    return (folder / "modules.json").is_file() or (folder / "config.json").is_file()


def folder_meta(folder: Path, *, style: Style = "plain") -> ModelMeta:
    """A local folder as a model of mteb, nothing of it loaded; its revision is a hash of its files.

    Raises:
        ValueError: no model in the folder; an unknown style.
    """
    folder = folder.expanduser()
    if not is_model(folder):
        hint = "; xvlm2vec demo writes it" if str(folder) == DEFAULT_MODEL else ""
        raise ValueError(f"no model in {folder} (no modules.json, no config.json){hint}")
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}")
    modalities, instructions = modalities_from_files(folder)
    return OwnMeta.create_empty(
        overwrites={
            "name": f"local/{folder.resolve().name}",
            "revision": folder_revision(folder),
            "loader": load_folder,
            "loader_kwargs": {"folder": str(folder)},
            "modalities": modalities,
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["Sentence Transformers", "PyTorch"],
            "use_instructions": instructions,
            "experiment_kwargs": None if style == "plain" else {"style": style},
        }
    )


def modalities_from_files(folder: Path) -> tuple[list[str], bool]:
    """What a folder's model takes by its files, and whether its texts hold instructions.

    That is so unless it takes images and texts, and only apart: CLIP and its kin.
    """
    saved = folder / "sentence_bert_config.json"
    taken = _json(saved).get("modality_config")
    if taken is not None:
        modalities = [name for name in ("text", "image") if name in taken]
        return modalities, "message" in taken or "image" not in taken
    config = _json(folder / "config.json")
    apart = config.get("model_type") in APART or (folder / "0_CLIPModel").is_dir()
    images = apart or "vision_config" in config or "img_processor" in config
    return ["text", "image"] if images else ["text"], not apart


def _json(path: Path) -> dict[str, Any]:
    return read_object(path, "download the model again") if path.is_file() else {}


def folder_revision(folder: Path) -> str:
    """A hash of all files that decide a model's embeddings; 1 GB takes about a second."""
    digest = sha256()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix not in WEIGHTS or path.name in LEFT_OUT or not path.is_file():
            continue
        if any(part in LEFT_OUT_FOLDERS or part.startswith(("checkpoint-", ".")) for part in parts):
            continue
        if path.name == SETTINGS:
            settings = {key: value for key, value in _json(path).items() if key != "__version__"}
            digest.update(json.dumps(settings, sort_keys=True).encode())
            continue
        digest.update(f"{'/'.join(parts)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:40]


def load_folder(
    name: str, revision: str | None = None, *, folder: str, device: str | None = None, **kwargs: Any
) -> "MMMEBEncoder":
    """The encoder of a local folder: how mteb loads what `folder_meta` describes.

    Raises:
        ValueError: the model takes other modalities than its files say.
    """
    from mmmeb_tasks.models.encoder import MMMEBEncoder

    style = kwargs.pop("style", "plain")
    embed_dim = kwargs.pop("embed_dim", None)
    model = sentence_transformer(folder, device=device, truncate_dim=embed_dim, **kwargs)
    encoder = MMMEBEncoder(model, name=name, style=style, batch_size=None)
    takes = [m for m in ("text", "image") if model.supports(m)]
    stored, _ = modalities_from_files(Path(folder))
    if set(takes) != set(stored):
        raise ValueError(
            f"{folder} takes {' and '.join(takes)}, but its files say {' and '.join(stored)}; save it again "
            "with sentence-transformers 6.2 or later"
        )
    return encoder


def sentence_transformer(folder: str, **kwargs: Any) -> Any:
    """A model by sentence-transformers; by the faster class of `xvlm2vec_st` where that is there."""
    try:
        host = importlib.import_module("xvlm2vec_st")
    except ModuleNotFoundError:
        host = importlib.import_module("sentence_transformers")
    return host.SentenceTransformer(folder, **kwargs)
