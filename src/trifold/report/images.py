"""Images that a model predicts, beside those that they were made of and those that they should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trifold.errors import ShapeError
from trifold.report.style import PLAIN, SMALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def images(rows: Mapping[str, Any], *, title: str = "", lowest: float = 0.0, highest: float = 1.0) -> Figure:
    """One row of images per name, column by column the same cells; white is ``lowest``, black ``highest``.

    Args:
        rows: Name -> [k, height, width] values.
        title: Above all.
        lowest, highest: Ends of the grey scale, the same for all images.

    Raises:
        ShapeError: The rows differ in shape, or are no images.
    """
    from matplotlib.figure import Figure

    stacks = {name: np.asarray(stack, dtype=np.float64) for name, stack in rows.items()}
    shapes = {stack.shape for stack in stacks.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise ShapeError(
            f"images needs rows of one shape [k, height, width]; found {', '.join(sorted(map(str, shapes))) or 'none'}. "
            "Pass arrays of that shape."
        )
    count = next(iter(shapes))[0]
    figure = Figure(figsize=(2.2 + 0.85 * count, 0.6 + 0.9 * len(stacks)), layout="constrained")
    axes = figure.subplots(len(stacks), count, squeeze=False)
    for line, (name, stack) in zip(axes, stacks.items(), strict=True):
        for ax, image in zip(line, stack, strict=True):
            ax.imshow(image, cmap="gray_r", vmin=lowest, vmax=highest, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_color("#CCCCCC")
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=SMALL, labelpad=8)
    if title:
        figure.suptitle(title, fontsize=PLAIN, fontweight="bold")
    return figure
