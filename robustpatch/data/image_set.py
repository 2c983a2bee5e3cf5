"""Labelled images of one size: values in memory, or files that are read when they are asked for."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from robustpatch.data.framing import Framing
from robustpatch.data.pictures import Unreadable, content, picture
from robustpatch.errors import InvalidInput
from robustpatch.memory import free

_HELD = 2**30  # bytes of a folder's images, decoded, up to which they are kept in memory


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one size, read in batches. Index i is image i of the split, in the dataset's own order. A
    folder's images are read when first asked for, and kept as bytes where all of them take at most a gigabyte. A file
    that is another when it is read again is refused with `InvalidInput`: what was read of it before may be in use.
    `left_out` says which files of a folder are not among them, in words, where some are not; `notes` are lines that a
    command says of them when its work begins.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    labels: Tensor
    _bytes: Tensor | None = None
    _files: tuple[Path, ...] | None = None
    _framing: Framing | None = None
    left_out: str | None = None
    notes: tuple[str, ...] = ()
    _held: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)
    _seen: dict[int, tuple[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 [B,C,H,W] in [0, 1] and labels [B]."""
        index = torch.as_tensor(index, dtype=torch.long)
        size, memory = 4 * len(index) * math.prod(self.image_shape), free(torch.device("cpu"))
        if size > memory:
            raise InvalidInput(
                f"{len(index)} images of {self.image_shape} together take {size / 1e9:,.1f} GB of memory, of which "
                f"{memory / 1e9:,.1f} are free; take fewer with --batch-size, or smaller ones with --image-size"
            )
        pixels = self._pixels(index)
        return pixels.clone() if pixels.is_floating_point() else pixels.to(torch.float32) / 255, self.labels[index]

    def file_names(self, total: int) -> tuple[str, ...]:
        """CLASS/FILE of the first `total` images, where they are files; else nothing."""
        return tuple(f"{path.parent.name}/{path.name}" for path in (self._files or ())[:total])

    def stored(self, i: int) -> bytes:
        """Image i before it is decoded, scaled or cropped: its values in memory, or its file."""
        if self._bytes is not None:
            return self._bytes[i].numpy().tobytes()
        path = self._unchanged(i)
        try:
            return content(path)
        except Unreadable as error:
            raise InvalidInput(f"{path} cannot be read ({error}); mend or remove it") from error

    def _pixels(self, index: Tensor) -> Tensor:
        """Images [B,C,H,W], uint8, or floats in [0, 1] of one's own, from memory by one gather."""
        if self._bytes is not None:
            return self._bytes[index]
        if not self._held:
            if len(self) * math.prod(self.image_shape) > _HELD:
                return torch.stack([self._read(i) for i in index.tolist()])
            self._held[:] = [
                torch.empty(len(self), *self.image_shape, dtype=torch.uint8),
                torch.zeros(len(self)).bool(),
            ]
        pixels, known = self._held
        for i in index[~known[index]].tolist():
            pixels[i] = self._read(i)
            known[i] = True
        return pixels[index]

    def _unchanged(self, i: int) -> Path:
        """The file of image i; one that was written since it was first read is refused."""
        assert self._files is not None
        path = self._files[i]
        try:
            now = path.stat()
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read ({error}); mend or remove it") from error
        if self._seen.setdefault(i, (now.st_size, now.st_mtime_ns)) != (now.st_size, now.st_mtime_ns):
            raise InvalidInput(f"{path} was written since it was first read; load the images anew")
        return path

    def _read(self, i: int) -> Tensor:
        path = self._unchanged(i)
        try:
            image = picture(path, self.image_shape[0])
        except Unreadable as error:
            raise InvalidInput(f"{path} cannot be read as an image ({error}); mend or remove it") from error
        if self._framing is not None:
            image = self._framing(image)
        if tuple(image.shape) != self.image_shape:
            raise InvalidInput(
                f"{path} has shape {tuple(image.shape)}, the first image {self.image_shape}; bring all to one size "
                "with --image-size"
            )
        return image


def read_ahead(images: ImageSet, batches: Iterable[Tensor], workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """`images.batch` of each index in turn, the next `workers` of them read meanwhile by as many threads."""
    if workers < 0:
        raise InvalidInput(f"workers is {workers}; give a number of threads, or 0 to read each batch when it is due")
    if workers == 0:
        yield from map(images.batch, batches)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
        try:
            for index in batches:
                waiting.append(pool.submit(images.batch, index))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
