"""Teacher targets on disk, by content: written by many processes, whole after a kill at any time."""

import hashlib
import json
import os
import tempfile
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from xvlm2vec_st.encoding.batches import images_in, text_length
from xvlm2vec_st.images.hashing import image_key, opened
from xvlm2vec_st.utils.finite import check_targets

KEY = 16  # bytes
CHECK = 4  # a record's CRC-32
# Keys of a config that decide no state; the weights' types are told with the weights.
OF_THE_RUN = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}


class TargetStore:
    """Vectors of one width by key, in files that only ever grow.

    A process appends to a file of its own and reads all: no lock, and a kill can cut the last record
    of one file at most, which is then as if it had never been. A record is key, fp32 values, CRC-32.

    Args:
        folder: made where it is missing; one store, for one teacher.
        width: values a record.
    """

    def __init__(self, folder: str | Path, width: int) -> None:
        self.folder, self.width = Path(folder), width
        self.record = KEY + 4 * width + CHECK
        self.folder.mkdir(parents=True, exist_ok=True)
        self._own: Path | None = None
        self._read: dict[Path, int] = {}
        self._place: dict[bytes, tuple[Path, int]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._place)

    def refresh(self) -> None:
        """Learn what other processes have written since."""
        for path in sorted(self.folder.glob("*.targets")):
            start, whole = self._read.get(path, 0), path.stat().st_size // self.record
            if whole > start:
                table = np.memmap(path, np.uint8, "r", shape=(whole, self.record))
                for number, key in enumerate(table[start:, :KEY], start):
                    self._place.setdefault(key.tobytes(), (path, number))
            self._read[path] = max(whole, start)

    def get(self, key: bytes) -> np.ndarray | None:
        """(width,) fp32, or None for a key that is not there, or whose record is damaged."""
        if key not in self._place:
            return None
        path, number = self._place[key]
        with path.open("rb") as file:
            file.seek(number * self.record)
            record = file.read(self.record)
        body, check = record[:-CHECK], record[-CHECK:]
        if len(record) < self.record or zlib.crc32(body) != int.from_bytes(check, "little"):
            del self._place[key]  # computed anew, and found there from then on
            return None
        return np.frombuffer(body[KEY:], np.float32).copy()

    def put(self, keys: Sequence[bytes], values: np.ndarray) -> None:
        """Append (len(keys), width) fp32 values; those of one call are kept together or not at all.

        Raises:
            ValueError: the disk takes no more; what was there before stays, whole.
        """
        records = b"".join(
            (body := key + row.tobytes()) + zlib.crc32(body).to_bytes(CHECK, "little")
            for key, row in zip(keys, np.ascontiguousarray(values, np.float32), strict=True)
        )
        if self._own is None:
            self._own = self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}.targets"
        start = self._own.stat().st_size if self._own.exists() else 0
        try:
            with self._own.open("ab", buffering=0) as file:
                left = memoryview(records)
                while left:
                    left = left[file.write(left) :]
        except OSError as error:
            if self._own.exists():
                os.truncate(self._own, start)
            raise ValueError(
                f"the cache of teacher targets in {self.folder} cannot grow ({error.strerror}); free space, "
                f"or name another folder, and resume: the {len(self)} targets in it are kept"
            ) from error
        for number, key in enumerate(keys, start // self.record):
            self._place.setdefault(key, (self._own, number))
        self._read[self._own] = (start + len(records)) // self.record


def item_key(item: Any) -> bytes:
    """What an input says and shows: a text and its images' pixels, wherever they came from.

    >>> item_key("red apple") == item_key({"text": "red apple"}), item_key("red apple") == item_key("pear")
    (True, False)
    """
    text = item if isinstance(item, str) else item.get("text")
    if text is not None and text_length(item) != len(text):
        raise ValueError(f"an input of {sorted(item)} has more than a text and images; it cannot be cached")
    shown = [image_key(opened(image)) for image in images_in(item)]
    return hashlib.blake2b(repr((text, shown)).encode(), digest_size=KEY).digest()


def fingerprint(model: SentenceTransformer) -> str:
    """16 bytes in hex for all that decides a model's states: weights, config, tokens, pixels, pooling.

    Adapters are left out: a student with its adapter off is the model that it started from.
    """
    found = hashlib.blake2b(digest_size=KEY)
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".").replace("base_model.model.", "")
        found.update(f"{plain} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    found.update(repr(settled(model[0].config.to_dict())).encode())
    found.update(preprocessing(model).encode())
    for module in list(model)[1:]:
        found.update(f"{type(module).__name__} {module.get_config_dict()}".encode())
    return found.hexdigest()


def settled(config: Any) -> Any:
    """A config without what says where it lies and how it is run, in one order, nested ones too.

    >>> settled({"rms_norm_eps": 1e-6, "_name_or_path": "a/b", "text_config": {"dtype": "float32"}})
    [('rms_norm_eps', 1e-06), ('text_config', [])]
    """
    if isinstance(config, list | tuple):
        return [settled(value) for value in config]
    if not isinstance(config, dict):
        return config
    kept = {str(key): value for key, value in config.items() if str(key) not in OF_THE_RUN}
    return sorted((key, settled(value)) for key, value in kept.items() if not key.startswith("_attn"))


def preprocessing(model: SentenceTransformer) -> str:
    """What turns inputs into features, as one text: equal for two models, equal features."""
    body = model[0]
    with tempfile.TemporaryDirectory() as folder:
        body.processor.save_pretrained(folder)
        files = {
            str(path.relative_to(folder)): path.read_text("utf-8", errors="replace")
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
    if "tokenizer.json" in files:  # it keeps how the last batch was padded and cut
        tokens = json.loads(files["tokenizer.json"]) | {"padding": None, "truncation": None}
        files["tokenizer.json"] = json.dumps(tokens, sort_keys=True)
    images = type(getattr(body.processor, "image_processor", None)).__name__
    settings = [
        body.max_seq_length,
        getattr(body, "processing_kwargs", None),
        getattr(body, "do_lower_case", None),
    ]
    return repr((files, images, settings))


class CachedTeacher:
    """A teacher whose targets are kept on disk, and computed only where they are missing.

    Reordered rows, more languages, other students and new runs find what is there. A batch of which
    a row is missing is computed whole, as a live teacher would, so that a resumed run gets the same bits.
    In a distributed run with the student as its own teacher, all processes compute where one must.

    Args:
        teacher: the live one.
        folder: of all caches; each teacher has its own in it, by its fingerprint.
    """

    def __init__(self, teacher: Any, folder: str | Path) -> None:
        self.live = teacher
        self.model = teacher.model
        parts = "-".join(teacher.parts)
        self.store = TargetStore(
            Path(folder) / f"{fingerprint(teacher.model)}-{parts}", teacher.width * len(teacher.parts)
        )

    @property
    def forwards(self) -> int:
        """How often the live teacher was asked."""
        return self.live.forwards

    @property
    def needs_given(self) -> bool:
        """Always: the inputs themselves are the keys."""
        return True

    def targets(self, features: dict, source: Tensor | None = None) -> dict[str, Tensor]:
        """As the live teacher's: see `FrozenTeacher.targets`."""
        device = features["row"].device
        keys = [self.key(item, device) for item in features["given"]]
        found = [self.store.get(key) for key in keys]
        if any(value is None for value in found):
            self.store.refresh()
            found = [
                self.store.get(key) if value is None else value
                for key, value in zip(keys, found, strict=True)
            ]
        missing = [number for number, value in enumerate(found) if value is None]
        if self._anywhere(bool(missing), device):
            live = self.live.targets(features, source)
            check_targets(self.model, live)
            values = torch.cat([live[part].float() for part in self.live.parts], dim=-1).numpy(force=True)
            fresh = list({keys[n]: n for n in reversed(missing)}.values())
            if fresh:
                self.store.put([keys[n] for n in fresh], values[fresh])
            found = [self.store.get(keys[n]) if value is None else value for n, value in enumerate(found)]
        table = torch.from_numpy(np.stack(found)).to(device)
        return dict(zip(self.live.parts, table.split(self.live.width, dim=-1), strict=True))

    def key(self, item: Any, device: torch.device) -> bytes:
        """An input's key; autocast, which changes what a teacher says, is part of it."""
        if not torch.is_autocast_enabled(device.type):
            return item_key(item)
        kind = str(torch.get_autocast_dtype(device.type)).encode()
        return hashlib.blake2b(item_key(item) + kind, digest_size=KEY).digest()

    def _anywhere(self, here: bool, device: torch.device) -> bool:
        """Whether to compute: a sharded student runs in all processes or in none."""
        if not (self.live.is_student and torch.distributed.is_initialized()):
            return here
        asked = torch.tensor(int(here), device=device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return bool(asked)
