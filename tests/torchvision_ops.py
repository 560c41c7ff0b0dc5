"""torchvision's Python code over a PyTorch of another build, as a pytest plugin: `-p torchvision_ops`.

PyPI's wheel of torchvision for Linux has its compiled operators (`nms` and the like) for CUDA. A CPU
build of PyTorch cannot load them, and `import torchvision` then stops where it describes two of them.
What processors of transformers use, resizing, is Python over PyTorch; so it is enough that these two
have names. Where the operators do load, as in a torchvision for CPU, nothing is done here.
"""

import os
import subprocess
import sys

import pytest
import torch

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
KEPT = []  # the names go with the object that gave them


def operators_load() -> bool:
    """Whether torchvision imports as it is; asked in another process, for half an import stays."""
    asked = [sys.executable, "-c", "import torchvision"]
    return subprocess.run(asked, env=os.environ, capture_output=True).returncode == 0


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Before anything imports torchvision."""
    if not operators_load():
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + SIGNATURE)
        KEPT.append(library)
