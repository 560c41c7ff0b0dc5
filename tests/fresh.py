"""Code in a process that has forgotten some packages: it imports them anew, and the libraries below are there.

A new Python takes 4 to 10 seconds to import torch, transformers and mteb. This is for tests that need a first import of
ours, of mteb or of transformers, and no new Python.
"""

import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import processes

OURS = ("mmmeb_tasks", "recipes", "xvlm2vec_st")


def python(
    code: str, *, forget: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run code in the checkout, with our packages and those to forget not imported; its status, what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        child = processes.apart(_child, code, (*OURS, *forget), dict(environment or os.environ), printed)
        child.join(processes.PATIENCE)
        assert child.exitcode is not None, "it hangs"
        return subprocess.CompletedProcess(code, child.exitcode, *(path.read_text("utf-8") for path in printed))


def module(name: str, *words: str, **options: object) -> subprocess.CompletedProcess:
    """`python -m name words`."""
    run = f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return python(f"import runpy, sys; sys.argv = {[name, *words]}; {run}", **options)


def _child(code: str, packages: Sequence[str], environment: dict[str, str], printed: Sequence[Path]) -> None:
    for number, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(Path(__file__).parents[1])
    warnings.resetwarnings()  # pytest's make errors of some
    warnings.simplefilter("ignore")
    _forget(packages)
    _restore_output()
    status = _run(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _forget(packages: Sequence[str]) -> None:
    """As if the packages had not been imported; nor any finder of theirs."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]
    sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__.partition(".")[0] not in packages]
    for finder in sys.meta_path:
        if type(finder).__name__ == "MMMEB":  # of the file that Python reads when it starts
            type(finder).busy = False


def _restore_output() -> None:
    """The libraries' warnings and bars, which a command in the same process has switched off."""
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.set_verbosity_warning()
        logging.enable_progress_bar()
    if "datasets" in sys.modules:
        sys.modules["datasets"].enable_progress_bars()


def _run(code: str) -> int:
    try:
        exec(compile(code, "code", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
