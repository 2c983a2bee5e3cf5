"""What the certifiers here share: bands and masks made by plain loops, and what `certify` returns."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch


def claim(prediction, certified):
    """What `certify` returns."""
    return SimpleNamespace(prediction=prediction, certified=certified)


def bands(length, size, stride=1, wrap=True):
    """[N, length] bool: band n holds the `size` columns from n·stride on, around the border or cut off there."""
    kept = np.zeros((len(range(0, length, stride)), length), dtype=bool)
    for n, start in enumerate(range(0, length, stride)):
        for k in range(start, start + size):
            if wrap or k < length:
                kept[n, k % length] = True
    return kept


def touched_by(kept, width):
    """[places, N]: the bands that `width` neighbouring columns meet, place by place."""
    return np.stack([kept[:, p : p + width].any(axis=1) for p in range(kept.shape[1] - width + 1)])


def most_touched(kept, width):
    """The most bands that `width` neighbouring columns meet anywhere."""
    return int(touched_by(kept, width).sum(axis=1).max())


def torch_views(x, kept):
    """[N·B, C+1, H, W], view by view: hidden columns are 0, and a channel says which are shown."""
    found = []
    for mask in torch.from_numpy(kept):
        shown = torch.where(mask, x, 0.0)
        found.append(torch.cat([shown, mask.float().expand_as(x[:, :1])], dim=1))
    return torch.cat(found)


def numpy_views(x, masks):
    """[N, B, C+1, H, W] of masks [N, H, W] (True: shown)."""
    x = np.asarray(x, dtype=np.float32)
    shown = np.where(masks[:, None, None], x[None], np.float32(0))
    told = np.broadcast_to(masks[:, None, None], (len(masks), len(x), 1, *x.shape[2:]))
    return np.concatenate([shown, told.astype(np.float32)], axis=2)


def numpy_scores(base, x, masks):
    """[B, N, K]: what a base that takes tensors says of every view, one image after the other."""
    found = []
    for image in np.asarray(x):
        views = numpy_views(image[None], masks)[:, 0]
        found.append(np.asarray(base(torch.from_numpy(np.ascontiguousarray(views)))))
    return np.stack(found)


def row_masks(height, width, size, stride=1, wrap=True):
    """Bands of rows as masks [N, H, W]."""
    return np.repeat(bands(height, size, stride, wrap)[:, :, None], width, axis=2)


def starts(length, covered, places):
    """Where masks begin, and their length, so that one of them hides any `covered` neighbours (PatchCleanser)."""
    covered = min(covered, length)
    step = -(-(length - covered + 1) // places)
    size = covered + step - 1
    return sorted({min(i * step, length - size) for i in range(places)}), size


def hiding(height, width, side, places):
    """Masks [M, H, W], True where hidden: one of them hides any `side`×`side` patch."""
    (tops, tall), (lefts, wide) = starts(height, side, places), starts(width, side, places)
    found = np.zeros((len(tops) * len(lefts), height, width), dtype=bool)
    for n, (top, left) in enumerate((t, s) for t in tops for s in lefts):
        found[n, top : top + tall, left : left + wide] = True
    return found
