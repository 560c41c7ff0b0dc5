"""The stock `mteb` knows MMMEB: from a wheel, from an editable install, and only where it is wanted."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import fresh
import mteb as mteb_library
import pytest
from mteb.cache import ResultCache

import build_backend
from mmmeb_tasks.data.layout import LAYOUTS
from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.tasks import MiniI2TRanking
from mmmeb_tasks.mini.write import write_benchmark
from mmmeb_tasks.plugin import import_hook as autoload
from mmmeb_tasks.plugin.cli import locked, mmmeb_tasks_among

ROOT = Path(__file__).parents[1]
SITE = Path(sysconfig.get_path("purelib"))
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"

# Every command is the one that mteb installs, unchanged; one process, because mteb takes seconds.
COMMANDS = """
import contextlib, io, json, sys
import mteb
from mteb.cli import main

def run(*words):
    out = io.StringIO()
    sys.argv = ["mteb", *words]
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as error:
            out.write(str(error))
    return out.getvalue()

print(json.dumps({
    "place": __import__("mmmeb_tasks").__file__ if "mmmeb_tasks" in sys.modules else None,
    "import": [mteb.get_task(name).metadata.name for name in NAMES],
    "models": mteb.get_model_meta("M-CLIP/XLM-Roberta-Large-Vit-B-16Plus").modalities,
    "tasks": run("available-tasks", "-t", *NAMES),
    "runs": [run(*words) for words in RUNS],
}))
"""
BASELINE = "M-CLIP/XLM-Roberta-Large-Vit-B-16Plus"
NAMES = ["MMMEB", "MMMEBMini", "XTD10I2TRanking", "MaXMRanking", "MiniT2IRanking"]


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MMMEBMini with few queries and candidates."""
    data = write_benchmark(tmp_path_factory.mktemp("mini") / "data", queries=100)
    for path in data.glob("datasets/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()[:4]]
        field = next(layout.candidates for layout in LAYOUTS.values() if layout.candidates in rows[0])
        lines = [json.dumps(row | {field: row[field][:4]}) for row in rows]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    return data


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build needs, so that it leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source") / "project"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "build_backend.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("mmmeb_tasks", "xvlm2vec_st", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def build(source: Path, hook: str) -> Path:
    """A wheel by the hook that pip calls."""
    out = source.parent / hook
    out.mkdir()
    code = f"import build_backend; print(build_backend.{hook}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


def install(wheel: Path, folder: Path) -> Path:
    """A virtual environment with the wheel in it; the other packages are this environment's."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = folder / "lib" / VERSION / "site-packages"
    with zipfile.ZipFile(wheel) as archive:  # what an installer does with a pure wheel
        archive.extractall(site)
    (site / "zz_others.pth").write_text(f"{SITE}\n")
    return folder / "bin" / "python"


def mteb(python: Path, code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code far from the checkout."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MMMEB_DATA")}
    return subprocess.run(
        [python, "-c", code],
        cwd=python.parents[1],
        env=inherited | {"HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def commands(python: Path, runs: list[list[str]], **environment: str) -> dict:
    """What the commands print."""
    done = mteb(python, f"NAMES = {NAMES}\nRUNS = {runs}\n{COMMANDS}", **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_from_a_built_wheel_the_stock_command_sees_and_runs_everything(
    source: Path, mini: Path, tmp_path: Path
) -> None:
    wheel = build(source, "build_wheel")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = archive.read(next(name for name in names if name.endswith("RECORD"))).decode()
        assert archive.testzip() is None
    assert all(f"\n{name},sha256=" in f"\n{record}" for name in build_backend.STARTUP)
    assert "mmmeb_tasks/mini/data/world.zip" in names
    python = install(wheel, tmp_path / "env")
    model = shutil.copytree(TEACHER, tmp_path / "teacher")
    common = ["-m", str(model), "--output-folder", str(tmp_path / "results"), "-v", "0"]
    seen = commands(
        python,
        [
            ["available-benchmarks", "-b", "MMMEB", "MMMEBMini"],
            ["run", *common, "-t", "MMMEBMini", "-l", "ita", "deu"],
            ["run", *common, "-b", "MMMEBMini"],
            ["run", *common, "-t", "MMMEBMinni"],
            ["run", *common, "-t", "MMMEBMini", "-l", "it"],
            ["run", *common, "-b", "MMEB"],
            ["run", *common, "-t", "MaXMRanking", "-l", "ita"],
        ],
        MMMEB_MINI_DATA=str(mini),
    )
    assert Path(seen["place"]).is_relative_to(tmp_path / "env")
    assert seen["import"] == NAMES
    assert all(name in seen["tasks"] for name in NAMES)
    assert seen["models"] == ["text", "image"]
    benchmarks, some, every, typo, language, benchmark, none = seen["runs"]
    assert all(name in benchmarks for name in NAMES)
    assert "| local/teacher: P@1, % | it | de | mean |" in some and "| MiniVQARanking |" in some
    assert "| local/teacher: P@1, % | en | it | es | fr | de | mean |" in every
    assert some.splitlines()[2].startswith("| MiniI2TRanking | ")
    assert typo == "mteb run: unknown task 'MMMEBMinni'; nearest: MMMEBMini, MMMEBMini11, MMMEB"
    assert language.startswith("mteb run: unknown language 'it'; did you mean ita? MMMEBMini has eng (en)")
    assert benchmark.startswith("mteb run: unknown benchmark 'MMEB'; nearest: ") and "MMMEB" in benchmark
    assert none == "mteb run: no data in ita: MaXMRanking has eng (en), fra (fr)"
    assert len([*(tmp_path / "results").glob("results/local__teacher/*/Mini*.json")]) == 5


@pytest.mark.slow
def test_from_an_editable_install_and_not_with_the_switch(source: Path, tmp_path: Path) -> None:
    python = install(build(source, "build_editable"), tmp_path / "env")
    seen = commands(python, [])
    assert Path(seen["place"]).is_relative_to(source)
    assert seen["import"] == NAMES and all(name in seen["tasks"] for name in NAMES)
    code = (
        "import mteb, sys; from mteb.get_tasks import _TASKS_REGISTRY as tasks\n"
        "from mteb.models.model_implementations import MODEL_REGISTRY as models\n"
        "known = {*tasks, *(b.name for b in mteb.get_benchmarks()), *models}\n"
        f"print([name for name in {[*NAMES, BASELINE]} if name in known], 'mmmeb_tasks' in sys.modules)"
    )
    on, off = mteb(python, code), mteb(python, code, MMMEB_NO_AUTOLOAD="1")
    assert on.stdout.strip() == f"{[*NAMES, BASELINE]} True", on.stderr[-2000:]
    assert off.stdout.strip() == "[] False", off.stderr[-2000:]


def started(folder: Path, code: str, *path: Path) -> subprocess.CompletedProcess:
    """A Python whose site folder is `folder`, with the start-up file in it."""
    (folder / "mmmeb.pth").write_text(build_backend.STARTUP["mmmeb.pth"])
    before = f"import site, sys; sys.path[:0] = {[str(place) for place in path]!r}\n"
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-S", "-c", f"{before}site.addsitedir({str(folder)!r})\n{code}"],
        env={"PYTHONPATH": "", "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=True, cwd=folder,
    )  # fmt: skip


def test_python_starts_with_nothing_of_ours(tmp_path: Path) -> None:
    done = started(tmp_path, "print('up')", ROOT)
    assert done.stdout == "up\n"
    assert not [line for line in done.stderr.splitlines() if "mmmeb" in line or "mteb" in line]


WHAT_A_PACKAGE_MAY_DO = {
    "SystemExit": "raise SystemExit(3)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "BaseException": "raise BaseException('odd')",
    "SyntaxError": "def",
    "ImportError": "import nothing_of_that_name",
    "an error that cannot be shown": "class E(Exception):\n def __str__(self): 1 / 0\nraise E",
}


@pytest.mark.parametrize("what", WHAT_A_PACKAGE_MAY_DO)
def test_whatever_the_package_raises_python_starts_and_mteb_is_imported(tmp_path: Path, what: str) -> None:
    for name, text in {"mteb": "", "mmmeb_tasks": WHAT_A_PACKAGE_MAY_DO[what]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text + "\n")
    done = started(tmp_path, "import mteb; print('up')", tmp_path)
    assert done.stdout == "up\n"
    lines = [line for line in done.stderr.splitlines() if line.startswith("mmmeb_tasks cannot be")]
    assert len(lines) == (not what.startswith("an error that"))
    assert all("; mteb works without it." in line for line in lines)


def test_a_program_without_stderr_imports_mteb(tmp_path: Path) -> None:
    for name, text in {"mteb": "", "mmmeb_tasks": "raise SystemExit(3)"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    done = started(tmp_path, "sys.stderr = None; import mteb; print('up')", tmp_path)
    assert done.stdout == "up\n"


def test_a_checkout_in_front_of_an_installation_is_used_whole(tmp_path: Path) -> None:
    for place in ("installed", "checkout"):
        (tmp_path / place / "mmmeb_tasks").mkdir(parents=True)
        (tmp_path / place / "mmmeb_tasks" / "__init__.py").write_text(f"print({place!r})\n")
        (tmp_path / place / "mteb.py").write_text("")
    code = f"sys.path.insert(0, {str(tmp_path / 'checkout')!r}); import mteb"
    assert started(tmp_path / "installed", code).stdout == "checkout\n"


def test_the_own_command_runs_mteb_in_a_checkout(tmp_path: Path) -> None:
    words, environment = ["run", "-m", "x", "-t", "MMMEBMinni"], os.environ | {"MMMEB_NO_AUTOLOAD": "1"}
    done = fresh.module("mmmeb_tasks", *words, forget=["mteb"], environment=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("'MMMEBMinni'; nearest: MMMEBMini, MMMEBMini11, MMMEB")


def test_a_card_of_a_local_model_needs_its_folder() -> None:
    words = ["mteb", "create-model-results", "--model-name", "local/t"]
    code = f"import sys, mmmeb_tasks; from mteb.cli import main; sys.argv = {words}; main()"
    done = fresh.python(code, forget=["mteb"])
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "mteb create-model-results: local/t is a local folder's name in results; pass the folder itself: "
        "--model-name ./t",
    )


def test_a_split_that_the_task_does_not_have_is_refused(mini: Path) -> None:
    task = MiniI2TRanking(data_root=mini)
    task._eval_splits = ["dev"]
    with pytest.raises(ValueError, match="MiniI2TRanking has no split 'dev', only test"):
        task.load_data()
    for name in ("MiniI2TRanking", "MMMEBMini"):
        with pytest.raises(ValueError, match=f"{name} has no split 'dev', only test"):
            mmmeb_tasks_among([name], None, ["test", "dev"])
        assert mmmeb_tasks_among([name], None, ["test"])
    (both,) = mteb_library.get_tasks(tasks=["MMMEBMini"], eval_splits=["dev"])
    with pytest.raises(ValueError, match="has no split 'dev', only test"):
        both.metadata.tasks[0].load_data()


def test_a_second_run_of_the_same_task_into_one_folder_ends_in_a_line(tmp_path: Path) -> None:
    cache, (both,), (one,), (other,) = ResultCache(tmp_path), *(
        mmmeb_tasks_among([name], None) for name in ("MMMEBMini", "MiniI2TRanking", "MiniT2IRanking")
    )  # fmt: skip
    code = (
        "import sys\nfrom mmmeb_tasks.utils.folders import Destination\n"
        f"with Destination({str(tmp_path / 'results' / 'local__m' / 'MiniI2TRanking')!r}).hold():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        for task in (both, one):
            with (
                pytest.raises(ValueError, match=r"MiniI2TRanking: another run is writing it \(process \d+"),
                locked(cache, [task], "local/m"),
            ):
                pass
        with locked(cache, [other], "local/m"), locked(cache, [one], "local/n"):
            pass
        first.stdin.close()
        assert first.wait() == 0
    with locked(cache, [both, other], "local/m"):
        pass
    assert not [*tmp_path.rglob("*.lock")]


def test_the_start_file_does_what_the_pth_does(tmp_path: Path) -> None:
    """Python 3.15 reads `module:function` lines, and then ignores the import of the .pth of the same name."""
    module, function = build_backend.STARTUP["mmmeb.start"].strip().split(":")
    (tmp_path / f"{module}.py").write_text(build_backend.STARTUP[f"{module}.py"])
    for place in ("mmmeb_tasks", "mteb"):
        (tmp_path / f"{place}.py").write_text(f"print({place!r})\n")
    code = f"import {module}, sys; {module}.{function}(); print('mmmeb_tasks' in sys.modules); import mteb"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PATH": os.environ["PATH"]}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("False\nmmmeb_tasks\nmteb\n", "")


def test_an_installation_that_is_half_gone_lets_python_start(tmp_path: Path) -> None:
    (tmp_path / "mmmeb.pth").write_text(build_backend.STARTUP["mmmeb.pth"])
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import site; site.addsitedir({str(tmp_path)!r}); print('up')"],
        capture_output=True, text=True, check=True, cwd=tmp_path, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("up\n", "")


FAKE = {
    "mteb/__init__.py": "from mteb import tasks, models\n",
    "mteb/tasks.py": "TASKS = 1\n",
    "mteb/models/__init__.py": "from mteb.models.model_implementations import MODEL_REGISTRY\n",
    "mteb/models/model_implementations.py": "MODEL_REGISTRY = {}\n",
}


@pytest.mark.parametrize("what", ["raise SystemExit(3)", "raise BaseException('odd')"])
def test_a_broken_part_of_the_package_stops_no_import_of_mteb(tmp_path: Path, what: str) -> None:
    shutil.copytree(ROOT / "mmmeb_tasks", tmp_path / "mmmeb_tasks", ignore=shutil.ignore_patterns("mini"))
    (tmp_path / "mmmeb_tasks" / "plugin.py").write_text(f"{what}\n")
    for name, text in FAKE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    done = started(tmp_path, "import mteb; print(mteb.tasks.TASKS)", tmp_path)
    assert done.stdout == "1\n"
    assert "MMMEB could not be added to mteb.tasks of this mteb" in done.stderr


def test_a_mteb_that_has_moved_something_works_on_and_one_line_says_so(tmp_path: Path) -> None:
    for name, text in FAKE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", "import mmmeb_tasks, mteb; print(mteb.tasks.TASKS)"],
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout == "1\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("mmmeb_tasks: MMMEB could not be added to mteb.tasks of this mteb (")
    assert all("mteb works without it" in line and "MMMEB_NO_AUTOLOAD=1" in line for line in lines)


@pytest.mark.parametrize("first", ["mmmeb_tasks.mini.tasks", "mmmeb_tasks.tasks"])
def test_a_module_of_ours_may_be_imported_before_mteb(first: str) -> None:
    """mteb is then imported while ours is half-way, and is registered with when ours is whole."""
    code = (
        f"import {first} as ours, mteb; from mmmeb_tasks.plugin import import_hook as autoload\n"
        "from mteb.models.model_implementations import MODEL_REGISTRY as models\n"
        "print([type(task).__module__ for task in mteb.get_tasks(tasks=['MMMEBMini', 'MaXMRanking'])],"
        f" mteb.get_benchmark('MMMEB').name, {BASELINE!r} in models, autoload.WAITING,"
        " type(ours.__spec__.loader).__name__)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MMMEB_NO_AUTOLOAD"}
    done = fresh.python(code, forget=["mteb"], environment=environment)
    assert done.returncode == 0, done.stderr
    assert "could not be added" not in done.stderr
    modules = "['mmmeb_tasks.benchmark', 'mmmeb_tasks.tasks']"
    assert done.stdout.strip() == f"{modules} MMMEB True [] SourceFileLoader"


def test_what_is_used_of_mteb_beyond_its_interface_is_there() -> None:
    """Where the host moves, this fails first: scanned modules, their registries, two private names."""
    assert all(importlib.util.find_spec(name) for name in autoload.TARGETS)
    assert importlib.import_module("mteb.cli.build_cli").run.__wrapped__
    tasks = sys.modules["mteb.get_tasks"]
    assert {"_TASKS_REGISTRY", "TASK_LIST", "_TASK_RENAMES"} <= vars(tasks).keys()
    assert hasattr(sys.modules["mteb.benchmarks.get_benchmark"]._build_registry, "cache_clear")
    assert importlib.import_module("mteb._create_dataloaders").create_dataloader


def test_registering_twice_changes_nothing() -> None:
    tasks = sys.modules["mteb.get_tasks"]
    before = len(tasks.TASK_LIST), sum(isinstance(f, autoload.AfterImport) for f in sys.meta_path)
    autoload.install()
    assert (len(tasks.TASK_LIST), sum(isinstance(f, autoload.AfterImport) for f in sys.meta_path)) == before
    assert sum(task.metadata.name == "MMMEB" for task in tasks.TASK_LIST) == 1


@pytest.mark.parametrize("name", ["m", "my model", "m[1]"])
def test_a_result_that_was_cut_off_is_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    from mteb.models import ModelMeta

    from mmmeb_tasks.plugin.cli import set_aside
    from mmmeb_tasks.tasks import XTD10I2TRanking

    meta = ModelMeta.create_empty(overwrites={"name": f"local/{name}", "revision": "r"})
    path = ResultCache(tmp_path).get_task_result_path("XTD10I2TRanking", meta)
    path.parent.mkdir(parents=True)
    path.write_text('{"dataset_revision": "main", "scores": {"test": [{"acc')
    moved = set_aside(ResultCache(tmp_path), XTD10I2TRanking(), meta.name)
    assert [p.name for p in moved] == ["XTD10I2TRanking.json.broken"] and not path.exists()
    assert "is cut off" in capsys.readouterr().err
