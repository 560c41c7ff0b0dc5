"""The server behind the page: what it shows is escaped, and it gives no file away."""

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import image_page
import numpy as np
import pytest
from PIL import Image

for package in ("gradio", "lancedb"):
    pytest.importorskip(package)
from recipes.image_search import server  # noqa: E402
from recipes.image_search.answers import EMPTY, Answers  # noqa: E402
from recipes.image_search.serve import prepare  # noqa: E402
from recipes.image_search.serve_options import parse_args  # noqa: E402

pytestmark = pytest.mark.filterwarnings(image_page.PANDAS)
ROOT = Path(__file__).parents[1]
SECRET = "what no page shows"
NAMES = [image_page.NASTY, '" onload="alert(1)', "${alert(1)} {{value}}.png", "a b é 🍎 \u202egnp.exe", "&lt;.png"]


def png(color):
    file = io.BytesIO()
    Image.new("RGB", (40, 40), color).save(file, "PNG")
    return file.getvalue()


class Listed:
    """An index of the names above: a query finds them all, in their order."""

    def search(self, vector, limit):
        shown = dict(width=1, height=1, modified=datetime(2024, 5, 1))
        found = [SimpleNamespace(path=name, score=1 - i / 10, content=f"{i}", **shown) for i, name in enumerate(NAMES)]
        return found[:limit] if vector.any() else []

    def thumbnail(self, content):
        return f"jpeg {content}".encode()


def test_names_queries_and_models_are_text_on_the_page():
    embed = {"<script>": lambda text, image: np.ones(2)}
    line, lists = Answers(Listed(), embed, 20).answer(" <i>mela</i> ", None)
    tags = set(re.findall(r"<(\w+)", line + lists))
    assert tags == {"div", "section", "h2", "ol", "li", "figure", "img", "figcaption", "bdi"}
    image = r'<img src="data:image/jpeg;base64,[\w=]+" alt="[^"]*" title="[^"]*">'
    assert lists.count("<img ") == len(NAMES) == len(re.findall(image, lists))
    assert "“&lt;i&gt;mela&lt;/i&gt;”" in line and "<h2>&lt;script&gt;</h2>" in lists
    assert "1.0000 <bdi>&lt;img src=x onerror=alert(1)&gt;.png</bdi>" in lists
    assert "\\u202egnp" in lists and "\u202e" not in lists + line


def test_each_model_has_its_list_of_at_most_so_many():
    embed = {"teacher": lambda text, image: np.ones(2), "student": lambda text, image: np.zeros(2)}
    line, lists = Answers(Listed(), embed, 2).answer("", "a.png")
    teacher, student = lists.split("<section")[1:]
    assert "<h2>teacher</h2>" in teacher and teacher.count("<li>") == 2
    assert "<h2>student</h2>" in student and student.count("<li>") == 0
    assert line.startswith("2 images for the image. Best of teacher: ") and "student" not in line
    assert Answers(Listed(), embed, 2).answer("red", "a.png")[0].startswith("2 images for “red” and the image. ")


def test_an_empty_query_gets_a_hint_and_a_bad_one_its_reason():
    def refuse(text, image):
        raise ValueError(f"<{text}> cannot be embedded")

    answers = Answers(Listed(), {"teacher": refuse}, 20)
    assert answers.answer(" \n", None) == (EMPTY, "")
    assert answers.answer("mela", None) == ("error: &lt;mela&gt; cannot be embedded", "")


@pytest.mark.parametrize("port", ["0", "65536", "web", "1" * 5000])
def test_what_is_not_a_port_is_refused(port, capsys):
    with pytest.raises(SystemExit):
        parse_args(["photos.index", "--port", port])
    assert f"{port} is not a port; pass 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["gradio", "lancedb"])
def test_a_missing_package_is_named_before_anything_is_loaded(package, monkeypatch):
    for name in ("gradio", "lancedb"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__spec__=name))  # as if it were installed
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys, "argv", ["serve", "photos.index"])
    with pytest.raises(ValueError, match=rf'{package} is not installed; pip install "xvlm2vec-st\[app\]"'):
        prepare()


def test_help_imports_none_of_the_large_libraries():
    code = (
        "import runpy, sys; sys.argv = ['serve', '--help']\n"
        "try: runpy.run_module('recipes.image_search.serve', run_name='__main__')\n"
        "except SystemExit: print({'torch', 'gradio', 'lancedb', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "--student" in done.stdout and done.stdout.endswith("\nset()\n")


# ---- The running server ----


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexed")
    made = image_page.make_index(folder, [image_page.concept("sunflower"), image_page.concept("violin")])
    (folder / "secret.txt").write_text(SECRET)
    (folder / "images" / "secret.txt").write_text(SECRET)
    (folder / "images" / "link.png").symlink_to(folder / "secret.txt")
    return made


@pytest.fixture(scope="module")
def address(index):
    with image_page.served(index, [None]) as url:
        yield url


def ask(address, path, *, method="GET", body=None, **headers):
    """(status, body) of a request whose path is sent as it is: no library takes its `..` out."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def upload(address, data, name="a.png"):
    """The path that gradio gives to an uploaded file."""
    head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + b"\r\n--edge--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    status, answer = ask(address, "/gradio_api/upload", method="POST", body=body, **kind)
    assert status == 200, answer
    return json.loads(answer)[0]


def test_an_upload_is_served_to_the_page_that_shows_it(address):
    path = upload(address, png("red"))
    assert ask(address, f"/gradio_api/file={path}") == (200, png("red"))
    assert path.startswith(os.environ["GRADIO_TEMP_DIR"])


def spellings(file):
    """Names of a file by which a careless server would find it."""
    names = [str(file), os.path.relpath(file), f"{os.environ['GRADIO_TEMP_DIR']}/{'../' * 12}{str(file)[1:]}"]
    names += [f"/proc/self/root{file}", f"file://{file}", f"/{file}", str(file.parent / "." / "x" / ".." / file.name)]
    return [*names, *(quote(name, safe="") for name in names), *(quote(quote(name, safe="")) for name in names)]


@pytest.mark.parametrize("name", ["secret.txt", "images/secret.txt", "images/link.png", "images/sunflower.png"])
@pytest.mark.parametrize("route", ["/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/", "/"])
def test_no_route_serves_a_file(address, index, route, name):
    file = index.parent / name
    for spelling in spellings(file):
        status, body = ask(address, route + spelling)
        assert status in (403, 404), (spelling, status)
        assert SECRET.encode() not in body and file.read_bytes() not in body


def test_the_files_of_the_current_folder_and_of_the_index_are_not_served(address, index):
    files = [ROOT / "pyproject.toml", *(path for path in index.rglob("*") if path.is_file())]
    assert len(files) > 3
    for file in files:
        assert ask(address, f"/gradio_api/file={file}")[0] == 403, file
        assert ask(address, f"/gradio_api/file={os.path.relpath(file)}")[0] == 403, file


def run_query(address, image):
    """The last event of a query for an image, as the page sends it."""
    config = json.loads(ask(address, "/config")[1])
    search = next(each for each in config["dependencies"] if len(each["inputs"]) == 2)
    data = ["", {"path": image, "meta": {"_type": "gradio.FileData"}}]
    body = json.dumps({"data": data, "fn_index": search["id"], "session_hash": "s"})
    json_type = {"Content-Type": "application/json"}
    status, answer = ask(address, "/gradio_api/queue/join", method="POST", body=body, **json_type)
    assert status == 200, answer
    events = ask(address, "/gradio_api/queue/data?session_hash=s")[1].decode().split("\n\n")
    events = [json.loads(event.removeprefix("data: ")) for event in events if event]
    return next(event for event in events if event["msg"] == "process_completed")


def test_a_query_reads_uploads_and_no_other_file(address, index):
    file = index.parent / "images" / "sunflower.png"
    answered = run_query(address, upload(address, file.read_bytes()))
    assert answered["success"] and "Best of teacher: sunflower.png" in answered["output"]["data"][0]
    for path in (str(file), str(file.parent / "link.png"), f"{os.environ['GRADIO_TEMP_DIR']}/../../../{file}"):
        refused = run_query(address, path)
        assert not refused["success"] and "sunflower.png." not in json.dumps(refused), path


def test_the_page_answers_to_the_names_of_this_machine_only(address):
    port = urlsplit(address).port
    for host, status in ((f"127.0.0.1:{port}", 200), (f"localhost:{port}", 200), ("evil.example", 400)):
        assert ask(address, "/config", Host=host)[0] == status, host
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))  # it reaches a server that listens on all addresses


def test_nothing_is_kept_or_reported(address):
    config = json.loads(ask(address, "/config")[1])
    assert config["analytics_enabled"] is False and config["run_history"] is False
    assert all(each["api_visibility"] == "private" for each in config["dependencies"])
    assert ask(address, "/monitoring")[0] in (403, 404)


def test_settings_of_the_environment_are_dropped_and_uploads_go(monkeypatch):
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    monkeypatch.setenv("GRADIO_SHARE", "True")
    with server.private_gradio():
        kept = {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}
        assert set(kept) == {"GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "GRADIO_ANALYTICS_ENABLED"}
        uploads = Path(kept["GRADIO_TEMP_DIR"])
        uploads.mkdir()
        (uploads / "a.png").write_bytes(b"x")
    assert not uploads.parent.exists()


@pytest.mark.slow
def test_uploads_go_while_the_page_runs(index, monkeypatch):
    monkeypatch.setattr("recipes.image_search.page.CLEARED", 1)
    with image_page.served(index, [None]) as url:
        path, until = Path(upload(url, png("red"))), time.monotonic() + 60
        assert path.is_file()
        while path.exists() and time.monotonic() < until:
            time.sleep(0.1)
        assert not path.exists()


def test_a_taken_port_is_refused(address):
    with pytest.raises(ValueError, match="pass another --port"):
        server.refuse_taken_port(urlsplit(address).port)
    server.refuse_taken_port(image_page.free_port())


def test_two_models_of_one_name_are_told_apart(index, monkeypatch):
    monkeypatch.setattr(server, "load_query_model", lambda space, name: name)
    space = SimpleNamespace(model="org/teacher", prompt="")
    assert list(server.load_models(space, [None, "b/student"])) == ["teacher", "student"]
    assert list(server.load_models(space, [None, "b/teacher"])) == ["org/teacher", "b/teacher"]
    monkeypatch.chdir(index.parent)
    assert list(server.load_models(space, [None, "."])) == ["teacher", index.parent.name]


def test_the_command_prints_the_address_and_opens_the_browser_if_asked(index, monkeypatch, capsys):
    seen = []

    def visit(page):
        path = upload(page.local_url, png("red"))
        seen.extend([page.local_url, Path(path), Path(path).is_file()])
        page.close()

    monkeypatch.setattr("gradio.Blocks.block_thread", visit)
    monkeypatch.setattr("webbrowser.open", lambda url: seen.append(f"opened {url}"))
    handler = signal.getsignal(signal.SIGTERM)
    port = image_page.free_port()
    monkeypatch.setattr(sys, "argv", ["serve", str(index), "--port", str(port), "--open", "--limit", "3"])
    try:
        prepare()()
    finally:
        signal.signal(signal.SIGTERM, handler)
    url = f"http://127.0.0.1:{port}/"
    assert capsys.readouterr().out.startswith(f"Search on {url} - Ctrl-C ends it\n")
    opened, shown, path, was_there = seen
    assert (opened, shown, was_there) == (f"opened {url}", url, True) and not path.exists()


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped_and_leaves_nothing(index, tmp_path):
    port = image_page.free_port()
    command = [sys.executable, "-m", "recipes.image_search.serve", str(index), "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        shown = process.stdout.readline()
        assert shown == f"Search on http://127.0.0.1:{port}/ - Ctrl-C ends it\n", shown + process.stdout.read()
        path = upload(f"http://127.0.0.1:{port}/", png("red"))
        assert Path(path).is_file() and Path(path).is_relative_to(tmp_path)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert [name for name in os.listdir(tmp_path) if name.startswith("xvlm2vec-serve-")] == []


def test_what_is_not_an_index_is_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve", str(tmp_path), "--port", str(image_page.free_port())])
    with pytest.raises(ValueError, match="is not an index"):
        prepare()()
