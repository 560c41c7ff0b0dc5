"""The build backend: setuptools, and three files beside the packages, read when Python starts.

`mmmeb.pth` makes mteb know MMMEB when it is imported; from Python 3.15 on, which then ignores the
other's import, `mmmeb.start` with `mmmeb_startup.py`. Neither setuptools nor PEP 621 has a place for
such files, in a wheel or in an editable install, so they are added to the wheel that setuptools has
built (PEP 517 and 660 hooks only).
"""

import base64
import csv
import io
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401 - hooks that stay as they are
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

# Python starts with nothing of ours imported: a finder waits for mteb, and imports the package then, from
# the path as it is by that time, so that a checkout in front of an installation is used whole. Whatever the
# package raises, mteb is imported. Nothing can catch what ends the process at once (os._exit, a crash);
# that ends programs that import mteb, and no others.
_WATCH = """
class MMMEB:
    busy = False
    def find_spec(self, name, path=None, target=None):
        if name == 'mteb' and not MMMEB.busy:
            MMMEB.busy = True
            try:
                __import__('mmmeb_tasks')
            except BaseException as error:
                try:
                    said = type(error).__name__ + ': ' + str(error)[:200]
                    sys.stderr.write('mmmeb_tasks cannot be imported (' + said + '); mteb works without it. '
                        'Install xvlm2vec-st again, or set MMMEB_NO_AUTOLOAD=1.\\n')
                except Exception:
                    pass  # no stderr, or it is closed
if not os.environ.get('MMMEB_NO_AUTOLOAD'):
    sys.meta_path.insert(0, MMMEB())
"""
_HEAD = '"""Read when Python starts, by mmmeb.start: as mmmeb.pth."""\n\nimport os\nimport sys\n'
STARTUP = {
    "mmmeb.pth": f"import os, sys; exec({_WATCH!r}, dict(os=os, sys=sys))\n",
    "mmmeb.start": "mmmeb_startup:start\n",
    "mmmeb_startup.py": f"{_HEAD}{_WATCH}\n\ndef start():\n    pass\n",
}


def build_wheel(folder: str, *args: Any, **kwargs: Any) -> str:
    """A wheel with the three files."""
    return with_startup(folder, build_meta.build_wheel(folder, *args, **kwargs))


def build_editable(folder: str, *args: Any, **kwargs: Any) -> str:
    """An editable wheel with the three files."""
    return with_startup(folder, build_meta.build_editable(folder, *args, **kwargs))


def with_startup(folder: str, name: str) -> str:
    """Add the files to a wheel, and to its list of contents; returns its name."""
    wheel = Path(folder, name)
    with zipfile.ZipFile(wheel) as built:
        contents = [(entry, built.read(entry)) for entry in built.infolist()]
    rows = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as out:
        for file, text in STARTUP.items():
            digest = base64.urlsafe_b64encode(sha256(text.encode()).digest()).rstrip(b"=").decode()
            rows.append([file, f"sha256={digest}", str(len(text.encode()))])
            out.writestr(zipfile.ZipInfo(file, (1980, 1, 1, 0, 0, 0)), text)
        for entry, data in contents:
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = io.StringIO()
                csv.writer(lines, lineterminator="\n").writerows(rows)
                data += lines.getvalue().encode()
            out.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return name
