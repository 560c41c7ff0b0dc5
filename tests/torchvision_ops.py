"""torchvision's Python code over a PyTorch of another build, as a pytest plugin: `-p torchvision_ops`.

PyPI's wheel of torchvision for Linux has its compiled operators (`nms` and the like) for CUDA. A CPU
build of PyTorch cannot load them, and `import torchvision` then stops where it describes two of them.
What processors of transformers use, resizing, is Python over PyTorch; so it is enough that these two
have names. Where the operators do load, as in a torchvision for CPU, nothing is done here.
"""

import os

import pytest
import torch

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
KEPT = []  # the names go with the object that gave them


def operators_load() -> bool:
    """Whether torchvision imports as it is; asked in a forked process, for half an import stays."""
    child = os.fork()
    if not child:
        try:
            import torchvision  # noqa: F401
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Before anything imports torchvision."""
    if not operators_load():
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + SIGNATURE)
        KEPT.append(library)
