"""Preprocess the next batch in a thread while the model computes the last one."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch

from xvlm2vec_st.encoding.batches import images_in
from xvlm2vec_st.encoding.open_images import OpenImages

Preprocess = Callable[..., dict[str, Any]]


class Prefetch:
    """The batches of an `encode` call. Their features are computed one batch ahead, in one thread, if a core is free.

    Pillow and torch let other threads run while they decode, resize and compute. One thread, and never two batches at
    a time: tokenizers must not be used by two threads at once.

    Args:
        inputs: all inputs of the call.
        batches: the numbers of each batch's inputs.
        sort: puts a batch's inputs into the order in which they will be preprocessed. If that is another order, the
            features are of no use, and later batches are preprocessed without the thread.
        images: the images of the call.
        device: where the model computes.
    """

    def __init__(
        self,
        inputs: Sequence[Any],
        batches: Sequence[list[int]],
        *,
        sort: Callable[[list[Any]], list[Any]],
        images: OpenImages,
        device: torch.device,
    ) -> None:
        self._inputs, self._batches, self._sort, self._images = inputs, batches, sort, images
        self._next: list[Any] | None = None
        self._number = 0
        self._future: Future[tuple[list[Any], dict[str, Any]]] | None = None
        self._useful = has_spare_core(device)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="preprocess")

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield the inputs of each batch."""
        for number in range(len(self._batches)):
            self._number = number
            items, self._next = self._next or self._items(number), None
            yield items

    def features(self, inputs: list[Any], preprocess: Preprocess) -> dict[str, Any]:
        """The features of the current batch, and start on those of the next one.

        Args:
            inputs: the inputs of the current batch, sorted.
            preprocess: called as `preprocess(inputs, images=…)`, for this batch and the next one.

        Raises:
            InputError: an input cannot be embedded.
        """
        features = self._finished(inputs)
        if features is None:
            features = self._compute(inputs, preprocess)
        if self._number + 1 < len(self._batches):
            self._next = self._items(self._number + 1)
            self._images.keep(image for item in self._next for image in images_in(item))
            if self._useful:
                self._future = self._pool.submit(self._compute_sorted, self._next, preprocess)
        return features

    def _items(self, number: int) -> list[Any]:
        return [self._inputs[n] for n in self._batches[number]]

    def _finished(self, inputs: list[Any]) -> dict[str, Any] | None:
        """What the thread has computed, if it is of these inputs in this order."""
        future, self._future = self._future, None
        if future is None:
            return None
        given, features = future.result()
        self._useful = list(map(id, given)) == list(map(id, inputs))
        return features if self._useful else None

    def _compute(self, inputs: list[Any], preprocess: Preprocess) -> dict[str, Any]:
        return preprocess(inputs, images=self._images)

    @torch.inference_mode()  # a setting of each thread; `encode` has it
    def _compute_sorted(self, items: list[Any], preprocess: Preprocess) -> tuple[list[Any], dict[str, Any]]:
        inputs = self._sort(items)
        return inputs, self._compute(inputs, preprocess)


def has_spare_core(device: torch.device) -> bool:
    """Whether a thread beside the model has a core to run on.

    By default, torch computes in as many threads as there are cores, and they wait for each other after each step. If
    another thread takes a core from one of them, all of them slow down.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return device.type != "cpu" or torch.get_num_threads() < cores
