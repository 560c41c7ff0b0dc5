"""Where the published data are: `MMMEB_DATA`, else the Hub, unpacked once into the cache.

cache/data-<revision>/datasets/*.jsonl      # a link to what was downloaded
cache/data-<revision>/xm_images/*.jpg       # and the other image folders, from images.zip
"""

import errno
import lzma
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from mmmeb_tasks.data.layout import HUB_DATASET, DataError, files
from mmmeb_tasks.utils.folders import Destination, expanded, is_complete
from mmmeb_tasks.utils.texts import printable

ARCHIVE = "images.zip"
CHUNK = 1 << 20
# Photos hardly shrink in a zip.
MOST, LARGEST, SMALL, RATIO = 5_000_000, 1 << 28, 1 << 26, 20
# What zipfile raises on a damaged entry, an encrypted one (RuntimeError) or one packed in a way that it does
# not know (NotImplementedError) among them.
DAMAGED = (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError, ValueError, struct.error)


def cache_folder() -> Path:
    """`MMMEB_CACHE`, else `~/.cache/mmmeb`."""
    return expanded(os.environ.get("MMMEB_CACHE") or "~/.cache/mmmeb")


def mmmeb_data() -> Path:
    """The folder of the published layout, downloaded and unpacked where that is needed.

    Raises:
        DataError: neither a folder in `MMMEB_DATA` nor the Hub gives the data; no space for the
            images; an archive that is broken or would write outside its folder.
    """
    if named := os.environ.get("MMMEB_DATA"):
        root = expanded(named)
        if not [*root.glob("datasets/*.jsonl")]:
            raise DataError(f"MMMEB_DATA is {root}, which has no datasets/*.jsonl; {_both_ways()}")
        # A copy of the Hub's files by hand: the images are still packed.
        packed = (root / ARCHIVE).is_file() and not [*root.glob("*_images")]
        return unpacked(root, revision=_fingerprint(root / ARCHIVE)) if packed else root
    source = download()
    return unpacked(source, revision=source.name)


def download() -> Path:
    """The Hub's files in the Hub's cache; what an earlier, broken-off download left is used.

    Raises:
        DataError: no network, or the Hub refuses.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # What the Hub's client raises half-way is an error of its HTTP library, which differs between releases
    # and need not be an OSError; its transfers by Xet raise RuntimeError.
    # mypy knows the members of `__bases__` as types of any kind.
    half_way: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OSError, RuntimeError)  # type: ignore[assignment]
    try:
        return Path(snapshot_download(HUB_DATASET, repo_type="dataset", allow_patterns=["datasets/*.jsonl", ARCHIVE]))
    except half_way as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"the data could not be downloaded from the Hub ({cause}); run again to continue where it stopped; "
            + _both_ways()
        ) from error


def _both_ways() -> str:
    return (
        "MMMEB needs its data: set MMMEB_DATA to a folder with datasets/*.jsonl and the image folders, "
        f"or allow the download of {HUB_DATASET} (unset MMMEB_DATA and HF_HUB_OFFLINE)"
    )


def unpacked(source: Path, *, revision: str) -> Path:
    """The folder in the published layout, from a folder with datasets/ and images.zip.

    Each image appears whole or not at all, its checksum compared; the folder appears when all
    are there. A run that was broken off is continued; a second process waits for the first.

    Raises:
        DataError: no archive, a broken one, one that leaves its folder; no space left.
    """
    folder = cache_folder() / f"data-{revision[:12]}"
    if is_complete(folder):
        return folder
    missing = [path.name for _, _, path in files(source) if not path.is_file()]
    if missing and not folder.is_dir():
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise DataError(f"{source} is not complete: no {missing[0]}{more}; {_both_ways()}")
    place = Destination(folder, option="MMMEB_CACHE")
    with place.hold(wait=True):
        if not folder.is_dir():
            _unpack_into(place.work, source)
            place.finish(place.work)
    return folder


def _unpack_into(partial: Path, source: Path) -> None:
    """Images and rows of `source`.

    Raises:
        DataError: as `unpacked`.
    """
    try:
        partial.mkdir(parents=True, exist_ok=True)
        unzip(source / ARCHIVE, partial)
        _link(source / "datasets", partial / "datasets")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(partial.parent).free / 1e9
        raise DataError(
            f"no space left for the images in {partial} ({free:.1f} GB free); make room, or set "
            "MMMEB_CACHE to another disk, and run again: it continues where it stopped"
        ) from error


def unzip(archive: Path, folder: Path) -> None:
    """Unpack an archive into `folder`, skipping what is there already, whole.

    Raises:
        DataError: no archive; one that is not a zip, or is damaged; an entry whose path leaves the
            folder, or that is a link; more or larger entries than images are. What the archive's own list
            shows is refused before anything is written.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            entries = [*_safe_entries(source, archive)]
            for entry in tqdm(entries, desc=f"Unpacking {archive.name}", unit="image"):
                target = folder / entry.filename
                if target.is_file() and target.stat().st_size == entry.file_size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(target.name + ".part")
                with source.open(entry) as packed, part.open("wb") as out:
                    shutil.copyfileobj(packed, out, CHUNK)  # raises BadZipFile on a wrong checksum
                part.replace(target)
    except DataError:
        raise
    except FileNotFoundError as error:
        if archive.is_file():
            raise
        raise DataError(f"no {archive.name} in {archive.parent}; {_both_ways()}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise DataError(
            f"{archive} cannot be unpacked ({error}); delete it and run again, so that it is downloaded again"
        ) from error
    except DAMAGED as error:
        raise DataError(
            f"{archive} is damaged ({printable(error)}); delete it and run again, so that it is downloaded again"
        ) from error


def _safe_entries(source: zipfile.ZipFile, archive: Path) -> Iterator[zipfile.ZipInfo]:
    entries = source.infolist()
    _check_sizes(entries, archive)
    seen: set[str] = set()
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        link = stat.S_ISLNK(entry.external_attr >> 16)
        drive = any(":" in part for part in path.parts[:1])  # "./" has no parts
        if link or path.is_absolute() or ".." in path.parts or drive:
            raise DataError(
                f"{archive} holds {entry.filename!r}, which {'is a link' if link else 'leaves the folder'}; "
                "nothing was unpacked: this is not the published archive"
            )
        if path.parts and not entry.is_dir():
            if path.parts[0].casefold() == "datasets":
                raise DataError(
                    f"{archive} holds {entry.filename!r}, which would replace the rows; nothing was "
                    "unpacked: this is not the published archive"
                )
            if str(path) in seen:
                raise DataError(f"{archive} holds {entry.filename!r} twice; this is not the published archive")
            seen.add(str(path))
            yield entry


def _check_sizes(entries: Sequence[zipfile.ZipInfo], archive: Path) -> None:
    """Refuse an archive that would fill the disk with what are not images.

    zipfile itself reads no more of an entry than its size in this list.

    Raises:
        DataError: too many entries; one too large, or all of them packed too well.
    """
    advice = "nothing was unpacked: this is not the published archive"
    if len(entries) > MOST:
        raise DataError(f"{archive} holds {len(entries):,} entries, at most {MOST:,} are allowed; {advice}")
    for entry in entries:
        if entry.file_size > LARGEST:
            raise DataError(
                f"{archive} holds {entry.filename!r} of {entry.file_size:,} bytes, at most {LARGEST:,} are "
                f"allowed; {advice}"
            )
    total, packed = sum(e.file_size for e in entries), archive.stat().st_size
    if total > max(SMALL, RATIO * packed):
        raise DataError(
            f"{archive} of {packed:,} bytes unpacks to {total:,}, more than {RATIO} times as much; {advice}"
        )


def _link(source: Path, target: Path) -> None:
    """The rows stay where the Hub's cache has them; a copy where the system has no links."""
    if target.is_symlink() and not target.exists():
        target.unlink()  # of a killed run, whose source is gone
    if target.exists():
        return
    try:
        target.symlink_to(source.resolve(), target_is_directory=True)
    except OSError:
        part = target.with_name(target.name + ".part")
        shutil.copytree(source, part, dirs_exist_ok=True)
        part.rename(target)


def _fingerprint(archive: Path) -> str:
    """Names an archive by its size, place and date: hashing 10 GB takes as long as unpacking."""
    facts = archive.stat()
    return sha256(f"{archive.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()
