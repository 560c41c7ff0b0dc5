"""Which route a model's batches take: what its configuration allows, and a check of what it computes."""

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig

from xvlm2vec_st.encoding.last_layer import pooled_tokens_only
from xvlm2vec_st.encoding.packing import has_window
from xvlm2vec_st.encoding.prefix_cache import build_prefix_cache

logger = logging.getLogger(__name__)

# From the most work that is shared to none; each is exact where it is possible at all.
ROUTES = ("packed", "branched", "vision", "plain")
# Attention implementations that take a 4-D mask; flash attention does not.
MASKED = ("sdpa", "eager")
# Kinds of layers whose masks hold for branches of a cache. Chunks are counted from the first token of a padded row.
BRANCHED_LAYERS = {"full_attention", "sliding_attention", "linear_attention", "conv"}
# Rotary factors that depend on the length of a row, which a prefix cannot know.
LENGTH_DEPENDENT_ROPE = {"longrope", "dynamic", "su"}
# Differences of states up to this many times the rounding of the plain route itself count as rounding.
ROUNDING = 8


@dataclass(frozen=True)
class Sharing:
    """The route of batches whose rows share images, and why.

    Attributes:
        route: one of `ROUTES`. packed: prefixes and branches in packed rows; branched: branches of a cache; vision: the
            vision tower only; plain: nothing is shared.
        reason: one sentence for the user.
    """

    route: str
    reason: str


def possible_routes(config: PreTrainedConfig, model: Any) -> tuple[list[str], str]:
    """(the routes that the configuration allows, best first; why the best is not better).

    Args:
        config: the model's configuration.
        model: the transformers model.
    """
    text = config.get_text_config()
    if not hasattr(model, "get_image_features"):
        return [], f"a {config.model_type} has no image features to share"
    if getattr(text, "cross_attention_layers", None):
        return [], f"the language model of {config.model_type} attends to images by cross-attention"
    if bidirectional(text):
        return ["vision"], "the language model is bidirectional: only the vision tower's work can be shared"
    why = {"packed": why_not_packed(text), "branched": why_not_branched(text)}
    routes = [route for route, reason in why.items() if reason is None]
    return [*routes, "vision"], "; ".join(filter(None, why.values()))


def bidirectional(text: PreTrainedConfig) -> bool:
    """Whether tokens attend to later tokens of the text."""
    return bool(getattr(text, "use_bidirectional_attention", None) in (True, "all")) or (
        getattr(text, "is_causal", True) is False
    )


def why_not_packed(text: PreTrainedConfig) -> str | None:
    """Why rows cannot be packed under one mask; None if they can."""
    if text._attn_implementation not in MASKED:
        return f"{text._attn_implementation} takes no 4-D mask"
    if has_window(text):
        kinds = sorted(set(getattr(text, "layer_types", None) or ["sliding_attention"]) - {"full_attention"})
        return f"one mask does not fit layers of {', '.join(kinds) or 'sliding_attention'}"
    return None


def why_not_branched(text: PreTrainedConfig) -> str | None:
    """Why branches cannot run on top of a cached prefix; None if they can."""
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"]) - BRANCHED_LAYERS
    rope = rope_types(text) & LENGTH_DEPENDENT_ROPE
    if kinds or rope:
        return f"a prefix cannot be cached with {', '.join(sorted(kinds | rope))}"
    try:
        build_prefix_cache(text)
    except ValueError as error:
        return str(error)
    return None


def rope_types(text: PreTrainedConfig) -> set[str]:
    """The kinds of rotary embeddings in a configuration: one, or one per kind of layer."""
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(entry.get("rope_type", entry.get("type", "default"))) for entry in (nested or [parameters])}


def decide_sharing(lvlm: Any, *, tested: bool) -> Sharing:
    """Take the best route of a tested family; check another model, once per configuration.

    Args:
        lvlm: the first module of the model.
        tested: the family's routes are tested, so that its configuration decides.
    """
    family = lvlm.config.model_type
    routes, why = possible_routes(lvlm.config, lvlm.inner)
    if not routes:
        return Sharing("plain", why)
    if tested:
        return Sharing(routes[0], "; ".join(filter(None, (why, f"{family} is tested"))))
    file = verdict_file(lvlm.config, lvlm.inner)
    if (known := read_verdict(file)) is not None:
        return known
    training = lvlm.training
    lvlm.eval()
    try:
        sharing = check_sharing(lvlm, routes, why)
    finally:
        lvlm.train(training)
        lvlm.sharing = None
    if sharing.route == "plain":  # not remembered: the next process may have more memory
        logger.warning("%s: images are not shared between rows (%s)", family, sharing.reason)
    else:
        write_verdict(file, sharing)
    return sharing


def check_sharing(lvlm: Any, routes: list[str], why: str) -> Sharing:
    """The first of `routes` whose states equal those of the plain route on a few small rows.

    Args:
        lvlm: the first module of the model.
        routes: the routes to try, best first.
        why: why better routes are not possible, for the reason.
    """
    failed = [why] if why else []
    try:
        with torch.no_grad():
            expected, rounding = plain_states(lvlm)
    except Exception as error:
        return Sharing("plain", f"the check could not embed its rows ({first_line(error)})")
    for route in routes:
        lvlm.sharing = route
        try:
            with torch.no_grad():
                states = real_states(lvlm, shared_features(lvlm))
        except Exception as error:
            failed.append(f"{route}: {first_line(error)}")
            continue
        worst = max(float((a - b).abs().max()) for a, b in zip(states, expected, strict=True))
        if worst <= rounding:
            return Sharing(route, "; ".join([*failed, f"checked: states differ by {worst:.0e} at most"]))
        failed.append(f"{route}: states differ by {worst:.0e}")
    return Sharing("plain", "; ".join(failed))


def check_rows() -> list[Any]:
    """Rows of two images, each with different texts, and a text."""
    pixels = np.random.default_rng(0).integers(0, 255, (2, 48, 64, 3), dtype=np.uint8)
    first, second = (Image.fromarray(image) for image in pixels)
    texts = ("a", "what is on the table")
    return [{"image": image, "text": text} for image in (first, second) for text in texts] + [{"text": "a text"}]


def shared_features(lvlm: Any) -> dict[str, Any]:
    """The features of the check's rows.

    Raises:
        ValueError: the processor writes more than placeholders into a row.
    """
    features = lvlm.to_device(lvlm.preprocess(check_rows()))
    if "image_group" not in features:
        raise ValueError("the processor's rows of one image differ in more than their texts")
    return cast(dict[str, Any], features)


def plain_states(lvlm: Any) -> tuple[list[Tensor], float]:
    """(states of the check's rows by the plain route, in one batch; the difference that counts as rounding)."""
    lvlm.sharing = "plain"
    rows = check_rows()
    together = real_states(lvlm, lvlm.to_device(lvlm.preprocess(rows)))
    alone = [real_states(lvlm, lvlm.to_device(lvlm.preprocess([row])))[0] for row in rows[:1]]
    scale = max(float(states.abs().max()) for states in together)
    rounding = max(float((a - b).abs().max()) for a, b in zip(alone, together, strict=False))
    return together, max(ROUNDING * rounding, 32 * torch.finfo(together[0].dtype).eps * scale)


def real_states(lvlm: Any, features: dict[str, Any]) -> list[Tensor]:
    """The states of each row's tokens, without padding."""
    with pooled_tokens_only(lvlm, wanted=False):  # also if an `encode` asks for the check
        states = lvlm(dict(features))[lvlm.module_output_name]
    return [row[mask] for row, mask in zip(states, features["attention_mask"].bool(), strict=True)]


def first_line(error: Exception) -> str:
    """The beginning of an error's message, on one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def verdict_file(config: PreTrainedConfig, model: Any) -> Path:
    """Where the verdict on a model is remembered: by its configuration, class, dtype, device and the libraries."""
    versions = [installed(name) for name in ("xvlm2vec-st", "transformers", "torch", "sentence-transformers")]
    parts = [config.to_dict(), type(model).__name__, str(model.dtype), model.device.type]
    parts.append(config.get_text_config()._attn_implementation)
    text = json.dumps([parts, versions], sort_keys=True, default=str)
    return Path(HF_HOME) / "xvlm2vec" / "sharing" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def installed(name: str) -> str | None:
    """The version of a package; None for one that runs from a folder, without an installation."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def read_verdict(file: Path) -> Sharing | None:
    """The remembered verdict; None if there is none that can be read."""
    try:
        return Sharing(**json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_verdict(file: Path, sharing: Sharing) -> None:
    """Remember a verdict. A folder that cannot be written costs a new check in the next process."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(asdict(sharing)), "utf-8")
        draft.replace(file)
    except OSError as error:
        logger.debug("%s was not written (%s)", file, error)
