"""Fingerprints of a model: of everything that decides its states, and of its preprocessing alone."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module

from xvlm2vec_st.utils.modules import transformer_of

DIGEST_BYTES = 16
# Config keys that decide no state. The dtype is hashed with the weights.
IGNORED_KEYS = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}


def fingerprint(model: SentenceTransformer, *, adapters: bool = False) -> str:
    """16 bytes in hex for everything that decides a model's states: weights, config, preprocessing, pooling.

    Adapters are left out, unless `adapters` is set: a student with its adapter disabled is the model that it
    started from.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" in name and not adapters:
            continue
        plain = name.replace(".base_layer.", ".").replace("base_model.model.", "")
        digest.update(f"{plain} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(repr(canonical_config(transformer_of(model).config.to_dict())).encode())
    digest.update(preprocessing_signature(model).encode())
    for module in list(model)[1:]:
        digest.update(f"{type(module).__name__} {cast(Module, module).get_config_dict()}".encode())
    return digest.hexdigest()


def canonical_config(config: Any) -> Any:
    """A config in one order, without keys that say where it lies or how it is run; nested configs too.

    >>> canonical_config({"rms_norm_eps": 1e-6, "_name_or_path": "a/b", "text_config": {"dtype": "float32"}})
    [('rms_norm_eps', 1e-06), ('text_config', [])]
    """
    if isinstance(config, list | tuple):
        return [canonical_config(value) for value in config]
    if not isinstance(config, dict):
        return config
    kept = {str(key): value for key, value in config.items() if str(key) not in IGNORED_KEYS}
    return sorted((key, canonical_config(value)) for key, value in kept.items() if not key.startswith("_attn"))


def preprocessing_signature(model: SentenceTransformer) -> str:
    """Everything that turns inputs into features, as one text. Equal signatures mean equal features."""
    body = transformer_of(model)
    with tempfile.TemporaryDirectory() as folder:
        body.processor.save_pretrained(folder)
        files = {
            str(path.relative_to(folder)): path.read_text("utf-8", errors="replace")
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
    if "tokenizer.json" in files:  # it stores the padding and truncation of the last batch
        tokens = json.loads(files["tokenizer.json"]) | {"padding": None, "truncation": None}
        files["tokenizer.json"] = json.dumps(tokens, sort_keys=True)
    image_processor = type(getattr(body.processor, "image_processor", None)).__name__
    settings = [getattr(body, name, None) for name in ("max_seq_length", "processing_kwargs", "do_lower_case")]
    return repr((files, image_processor, settings))
