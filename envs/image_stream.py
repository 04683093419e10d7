"""Streams of images whose tasks are pairs of classes, permutations of the pixels, or rotations."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn.datasets
from scipy import ndimage

from seqbdl.envs.stream import Array, StreamEnv, Task

FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
FASHION_INSTALL = "apt-get install dataset-fashion-mnist"
PROTOCOLS = ("split", "permuted", "rotated")
SCENARIOS = ("domain", "class", "task")


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An array in the IDX format, gzipped."""
    raw = gzip.decompress(path.read_bytes())
    sizes = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)


def load_images(dataset: str, folder: str) -> tuple[Any, Any, Any, Any, float]:
    """Training and test images `(n, h, w)` with their labels `(n,)`, as stored, and the value of a white pixel; of `digits` every
    fourth image is held out.

    Raises:
        ValueError: when there is no such data set, or its files are missing.
    """
    if dataset == "digits":
        data: Any = sklearn.datasets.load_digits()
        images, labels = data.images, data.target
        held_out = np.arange(len(images)) % 4 == 3
        return images[~held_out], labels[~held_out], images[held_out], labels[held_out], 16.0
    if dataset != "fashion-mnist":
        raise ValueError(f"dataset: {dataset!r} is not one of 'digits', 'fashion-mnist'.")
    arrays = []
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            path = Path(folder) / f"{part}-{kind}-ubyte.gz"
            if not path.exists():
                raise ValueError(f"the file {path} is missing; run: {FASHION_INSTALL}, or give folder= where it lies.")
            arrays.append(read_idx(path))
    return arrays[0], arrays[1], arrays[2], arrays[3], 255.0


class ImageStreamEnv(StreamEnv):
    """Images in tasks; which permutations, rotations and order of images is drawn at `reset`. Pixels are flattened.

    Args:
        dataset: `"digits"`, or `"fashion-mnist"`.
        protocol: `"split"`: task `t` shows classes `2t` and `2t + 1`; `"permuted"`: all classes, pixels permuted (task 0 as they
            are); `"rotated"`: all classes, turned by `t * 180 / num_tasks` degrees.
        scenario: `"class"`: of `"split"` it asks which of all classes it is; `"domain"`: which of the two of the task;
            `"task"`: the same, and says which task it is: the last column of the inputs is the task's number (`d` is one more,
            and `info["task"]` says it too), for networks with a head per task. Of other protocols, which show all classes,
            `"domain"` is `"class"`.
        num_tasks: at most 5 for `"split"`.
        per_task: training images per task, a random choice; `None`: all.
        per_test: held-out images per task; `None`: all.
        chunk: images per step.
        folder: of Fashion-MNIST's files.
        validation: the held-out images are every sixth training image, so that settings are not chosen on the test images.
    """

    def __init__(
        self,
        dataset: str = "digits",
        protocol: str = "split",
        scenario: str = "class",
        num_tasks: int = 5,
        per_task: int | None = None,
        per_test: int | None = None,
        chunk: int = 20,
        folder: str = FASHION_FOLDER,
        validation: bool = False,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol: {protocol!r} is not one of {', '.join(PROTOCOLS)}.")
        if scenario not in SCENARIOS:
            raise ValueError(f"scenario: {scenario!r} is not one of {', '.join(SCENARIOS)}.")
        if not 1 <= num_tasks <= (5 if protocol == "split" else 1000):
            raise ValueError(f"num_tasks: {num_tasks}; give 1 to {5 if protocol == 'split' else 1000}.")
        self._images = load_images(dataset, folder)
        if validation:
            x, y, *_, white = self._images
            held_out = np.arange(len(x)) % 6 == 5
            self._images = x[~held_out], y[~held_out], x[held_out], y[held_out], white
        self.protocol, self.scenario, self.num_tasks = protocol, scenario, num_tasks
        self.per_task, self.per_test = per_task, per_test
        classes = 10 if protocol != "split" or scenario == "class" else 2
        bounds = np.tile([[0.0], [1.0]], int(np.prod(self._images[0].shape[1:])))
        if scenario == "task":
            bounds = np.concatenate([bounds, [[0.0], [max(1.0, num_tasks - 1.0)]]], axis=1)
        super().__init__(bounds.shape[1], classes, chunk, bounds)

    def _told(self) -> dict[str, Any]:
        return {"task": self._places[self._step][0]} if self.scenario == "task" else {}

    def _tasks(self) -> list[Task]:
        return [self._task(t) for t in range(self.num_tasks)]

    def _task(self, t: int) -> Task:
        images, labels, test_images, test_labels, white = self._images
        order = self.np_random.permutation(images[0].size) if self.protocol == "permuted" and t > 0 else None
        parts: list[Array] = []
        for x, y, count in ((images, labels, self.per_task), (test_images, test_labels, self.per_test)):
            rows = np.flatnonzero(y // 2 == t) if self.protocol == "split" else np.arange(len(y))
            rows = self.np_random.permutation(rows)[:count]
            shown, answer = x[rows] / white, y[rows, None].astype(np.float64)
            if self.protocol == "rotated" and t > 0:
                shown = ndimage.rotate(shown, 180.0 * t / self.num_tasks, axes=(2, 1), reshape=False, order=1)
            flat = shown.reshape(len(rows), -1)
            flat = flat if order is None else flat[:, order]
            if self.scenario == "task":
                flat = np.concatenate([flat, np.full((len(rows), 1), float(t))], axis=1)
            parts += [flat, answer % 2 if self.num_classes == 2 else answer]
        return Task(*parts)
