"""Where the data come from: a folder, the Hub, an archive that is unpacked once; and all that fails."""

import errno
import importlib
import shutil
import socket
import struct
import zipfile
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from toys import write_published

from mmmeb_tasks.data import download as data_module
from mmmeb_tasks.data.download import mmmeb_data, unpacked, unzip
from mmmeb_tasks.data.layout import read_rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published layout, unpacked."""
    return write_published(tmp_path_factory.mktemp("whole") / "data")


@pytest.fixture
def hub(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the Hub's cache holds: datasets/ and images.zip; the download gives it."""
    snapshot = tmp_path / "snapshots" / "0123456789abcdef"
    shutil.copytree(whole / "datasets", snapshot / "datasets")
    with zipfile.ZipFile(snapshot / "images.zip", "w") as archive:
        for path in sorted(whole.glob("*_images/*.jpg")):
            archive.write(path, path.relative_to(whole).as_posix())
    monkeypatch.setenv("MMMEB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMMEB_DATA", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(snapshot))
    return snapshot


def test_the_folder_of_the_environment_is_taken_as_it_is(whole: Path, monkeypatch) -> None:
    monkeypatch.setenv("MMMEB_DATA", str(whole))
    assert mmmeb_data() == whole


def test_a_folder_without_data_names_both_ways(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MMMEB_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="has no datasets.*set MMMEB_DATA .*swap-uniba/MMMEB-Benchmark"):
        mmmeb_data()


def test_the_hubs_files_are_unpacked_once(hub: Path, tmp_path: Path, monkeypatch) -> None:
    asked = []

    def download(name: str, **kwargs: object) -> str:
        asked.append((name, kwargs["repo_type"], kwargs["allow_patterns"]))
        return str(hub)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = mmmeb_data()
    assert asked == [("swap-uniba/MMMEB-Benchmark", "dataset", ["datasets/*.jsonl", "images.zip"])]
    assert folder == tmp_path / "cache" / "data-0123456789ab"
    assert len([*read_rows(folder, "xm", "de", 1000, "t2i")]) == 12
    monkeypatch.setattr(data_module, "unzip", lambda *args: pytest.fail("unpacked again"))
    assert mmmeb_data() == folder
    left = folder.with_name(f"{folder.name}.partial.lock")
    left.write_text("xvlm2vec_st run: process 1 on here\n")  # killed between the last move and the unlock
    assert mmmeb_data() == folder and not left.exists()


def test_a_copy_of_the_hubs_files_by_hand_is_unpacked(hub: Path, monkeypatch) -> None:
    monkeypatch.setenv("MMMEB_DATA", str(hub))
    folder = mmmeb_data()
    assert folder != hub and (folder / "xtd_images" / "3.jpg").is_file()
    assert not (hub / "xtd_images").exists()


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no network"),
        OfflineModeIsEnabled("offline"),
        HfHubHTTPError("503", response=SimpleNamespace(headers={}, request=None)),  # type: ignore[arg-type]
        ConnectionError("reset by peer"),
        RuntimeError("Data processing error: CAS service error"),
    ],
    ids=["never downloaded", "offline", "server", "half-way", "half-way by Xet"],
)
def test_no_network_is_one_error_that_names_both_ways_and_the_next_call_goes_on(
    hub: Path, error: Exception, monkeypatch
) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match="the data could not be downloaded from the Hub .*set MMMEB_DATA .*or allow"):
        mmmeb_data()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(hub))
    assert (mmmeb_data() / "xm_images").is_dir()


def test_a_broken_download_is_reported_whatever_the_client_raises(hub: Path, monkeypatch) -> None:
    """The HTTP library of the Hub's client reads from a server that sends half, and resets."""
    library = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.split(".")[0])
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    raised = []

    def broken_off(*args: object, **kwargs: object) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            Thread(target=_send_half, args=(server,), daemon=True).start()
            try:
                library.get(f"http://127.0.0.1:{server.getsockname()[1]}")
            except Exception as error:
                raised.append(type(error).__name__)
                raise

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken_off)
    with pytest.raises(ValueError, match="could not be downloaded .*run again to continue where it stopped"):
        mmmeb_data()
    assert raised and raised[0] not in ("ConnectError", "ConnectTimeout")


def _send_half(server: socket.socket) -> None:
    client, _ = server.accept()
    client.recv(1 << 16)
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    client.close()


def test_without_the_hub_and_without_a_folder_the_real_client_is_called(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("MMMEB_DATA", raising=False)
    monkeypatch.setenv("MMMEB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ValueError, match="set MMMEB_DATA to a folder"):
        mmmeb_data()


def test_a_full_disk_is_reported_and_the_next_run_continues(hub: Path, tmp_path: Path, monkeypatch) -> None:
    copy, written = shutil.copyfileobj, []

    def full(source: object, target: object, length: int) -> None:
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(target.name)
        copy(source, target, length)

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(ValueError, match="no space left .*MMMEB_CACHE .*continues where it stopped"):
        mmmeb_data()
    assert not (tmp_path / "cache" / "data-0123456789ab").exists()
    again = []

    def count(source: object, target: object, length: int) -> None:
        again.append(target.name)
        copy(source, target, length)

    monkeypatch.setattr(shutil, "copyfileobj", count)
    folder = mmmeb_data()
    total = len([*folder.glob("*_images/*.jpg")])
    assert len(again) == total - 5 and not {*again} & {*written}
    assert not [*folder.rglob("*.part")]


@pytest.mark.parametrize("name", ["../out.jpg", "/tmp/out.jpg", "xm_images/../../out.jpg", "..\\out.jpg"])
def test_an_archive_that_leaves_its_folder_is_refused_whole(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("xm_images/1.jpg", b"x")
        archive.writestr(name, b"x")
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="leaves the folder; nothing was unpacked"):
        unzip(tmp_path / "images.zip", tmp_path / "in")
    assert not [*(tmp_path / "in").iterdir()] and not (tmp_path / "out.jpg").exists()


def test_an_archive_that_lists_its_own_folder_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("./", b"")
        archive.writestr("./xm_images/1.jpg", b"x")
    unzip(tmp_path / "images.zip", tmp_path / "in")
    assert [path.name for path in (tmp_path / "in").rglob("*.jpg")] == ["1.jpg"]


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("xm_images")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(ValueError, match="is a link; nothing was unpacked"):
        unzip(tmp_path / "images.zip", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "changed", "no zip"])
def test_a_damaged_archive_is_named_and_gives_no_folder(hub: Path, tmp_path: Path, damage: str) -> None:
    archive = hub / "images.zip"
    data = bytearray(archive.read_bytes())
    if damage == "cut":
        del data[-100:]
    elif damage == "changed":
        data[60] ^= 255  # in the first image
    else:
        data = bytearray(b"<html>not found</html>")
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="images.zip is damaged .*delete it and run again"):
        unpacked(hub, revision="r")
    assert not (tmp_path / "cache" / "data-r").exists()


def test_a_download_that_lacks_a_file_is_not_unpacked(hub: Path) -> None:
    (hub / "datasets" / "xm_de_1000_formatted_t2i.jsonl").unlink()
    with pytest.raises(ValueError, match="not complete: no xm_de_1000_formatted_t2i.jsonl"):
        mmmeb_data()


def test_a_missing_archive_is_reported(hub: Path) -> None:
    (hub / "images.zip").unlink()
    with pytest.raises(ValueError, match="no images.zip in"):
        mmmeb_data()
