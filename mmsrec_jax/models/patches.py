"""Where the patches of an image stand: in their grid, in attention windows, in M-RoPE."""

from collections.abc import Sequence

import numpy as np

from mmsrec_jax.runtime.errors import UserError


def patch_hw(grid: tuple[int, int], merge: int) -> np.ndarray:
    """Row and column int32 [n, 2] of each patch of a grid, in merge-block order."""
    rows, columns = np.indices(grid, dtype=np.int32)
    hw = np.stack([rows, columns], axis=-1)
    hw = hw.reshape(grid[0] // merge, merge, grid[1] // merge, merge, 2).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(hw.reshape(-1, 2))


def window_ids(
    hw: np.ndarray, grid: tuple[int, int], patch_size: int, window_size: int | None, merge: int
) -> np.ndarray:
    """Window int32 [n] of each patch, from 1, row-major over the image; one window without a size.

    Windows are cut from the top left and those at the right and lower edge are smaller.
    """
    if window_size is None:
        return np.ones(len(hw), np.int32)
    side = window_size // merge // patch_size * merge
    if side == 0:
        raise UserError(
            f"window_size {window_size} is below one merged patch ({merge * patch_size})"
        )
    across = -(-grid[1] // side)
    return (hw[:, 0] // side * across + hw[:, 1] // side + 1).astype(np.int32)


def mrope_positions(
    tokens: np.ndarray, grids: Sequence[tuple[int, int]], image_token_id: int | None, merge: int
) -> np.ndarray:
    """M-RoPE positions int32 [3, L] (time, height, width) of one unpadded sequence of tokens.

    Text advances all three by one. An image at position p has time p and height and width p plus
    the merged patch's row and column; what follows continues at p + max(rows, columns). Slots of
    adjacent images are divided by their grids. Raises UserError when slots and grids do not agree.
    Source: Qwen2-VL (arXiv:2409.12191), section 2.1.
    """
    tokens = np.asarray(tokens)
    slots = np.flatnonzero(tokens == image_token_id)
    merged = [(rows // merge, columns // merge) for rows, columns in grids]
    expected = sum(rows * columns for rows, columns in merged)
    if len(slots) != expected:
        raise UserError(
            f"{len(slots)} image slots in the tokens, but the {len(merged)} images given "
            f"need {expected}; give every image its slots and no slot without an image"
        )
    positions = np.empty((3, len(tokens)), np.int32)
    cursor = position = taken = 0
    for rows, columns in merged:
        start = int(slots[taken])
        taken += rows * columns
        if slots[taken - 1] != start + rows * columns - 1:
            raise UserError(
                f"the image slots from token {start} are interrupted before the image ends"
            )
        text = start - cursor
        positions[:, cursor:start] = np.arange(position, position + text)
        position += text
        cursor = start + rows * columns
        positions[0, start:cursor] = position
        positions[1:, start:cursor] = position + np.indices((rows, columns)).reshape(2, -1)
        position += max(rows, columns)
    positions[:, cursor:] = np.arange(position, position + len(tokens) - cursor)
    return positions
