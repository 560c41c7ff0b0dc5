"""Split a parallel corpus into training rows and held-out rows."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path


def hold_out(
    corpus: Path, *, new: Sequence[str], known: Sequence[str], rows: int, rehearsal: float, seed: int
) -> tuple[Path, Path]:
    """Write training rows and held-out rows beside the corpus; returns the two files.

    At most `rows` rows are held out. They have all languages, and no training row has the same English text.
    A training row keeps every new language, and each known one with probability `rehearsal`.

    Raises:
        ValueError: too few rows have all languages.
    """
    records = [json.loads(line) for line in corpus.open(encoding="utf-8")]
    codes = [*new, *known]
    whole = [r for r in records if all(code in r for code in codes)]
    whole.sort(key=lambda record: chance(record["id"], "held out", seed))
    chosen = list({(r["en"], r["image"]): r for r in whole}.values())[:rows]
    if not chosen or len(whole) < 2 * len(chosen):
        raise ValueError(
            f"{len(whole)} rows have all of {', '.join(codes)}, and at most half of them can be held out; "
            f"--eval-rows is {rows}: pass more rows, or lower it"
        )
    texts = {record["en"] for record in chosen if record["image"] is None}
    ids = {record["id"] for record in chosen}
    train = []
    for record in records:
        if record["id"] not in ids and not (record["image"] is None and record["en"] in texts):
            for code in known:
                if chance(record["id"], code, seed) >= rehearsal:
                    record.pop(code, None)
            train.append(record)
    places = corpus.with_name("train.jsonl"), corpus.with_name("held_out.jsonl")
    for place, part in zip(places, (train, chosen), strict=True):
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in part)
        place.write_text("".join(lines), "utf-8")
    return places


def chance(*keys: object) -> float:
    """A reproducible number from 0 to 1 for the keys.

    >>> chance("17", "it", 0) == chance("17", "it", 0) != chance("17", "es", 0)
    True
    """
    return int.from_bytes(hashlib.sha256("/".join(map(str, keys)).encode()).digest()[:6]) / 2**48
