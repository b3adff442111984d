"""``trifold map``: new cells onto a run that is trained; what was new, and how unlike training the new cells are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trifold import store
from trifold.cli import show
from trifold.cli.files import cells_of, require_free
from trifold.cli.pairs import policies
from trifold.errors import listing
from trifold.loading import load

_FAR = 0.95  # score of novelty above which a cell is counted; of cells like those of training up to a tenth have it


def map_query(
    run: Path,
    query: Path,
    out: Path,
    *,
    reference: Path | None,
    adapt: bool,
    steps: int,
    seed: int,
    device: str,
    missing: str,
    unknown: Sequence[str] | None,
    trust: Sequence[str],
    quiet: bool,
    force: bool,
) -> None:
    """Map, save, and say what was learned.

    Raises:
        TrifoldError: As ``load``, ``Model.map`` and ``Model.save``, or an output that cannot be written.
    """
    require_free(out, force=force)
    store.check_writable(out)
    policy = policies(unknown)
    model = load(run, trust=trust)
    source = cells_of(query, model.schema.x)
    old = None if reference is None else cells_of(reference, model.schema.x)
    mapped = model.map(
        source, reference=old, adapt=adapt, steps=steps, unknown=policy, missing=missing, seed=seed, device=device, progress=not quiet
    )
    mapped.save(out)
    about = mapped.card["mapped"][-1]
    rows = [("cells", f"{about['cells']:,}, {about['trained']:,} of them of new categories")]
    rows += [(f"new of {role}", listing([" / ".join(map(str, v)) for v in new], 8) or "none") for role, new in about["new"].items()]
    rows += [("replayed", f"{about['replayed']:,} cells of the reference"), ("steps", f"{about['steps']:,}")]
    show.table(f"Mapped onto {run}", ["", ""], rows)
    _novelty(mapped.novelty(source, unknown=policy, missing=missing, device=device))
    show.say(f"{out}: the run, which says of its own cells what {run} says", style="bold")


def _novelty(table: pd.DataFrame) -> None:
    distance, misfit, score = (table[name].to_numpy() for name in ("distance", "misfit", "score"))
    far: Any = score > _FAR
    show.say(
        f"Unlike training: {int(far.sum()):,} of {len(far):,} cells ({100 * far.mean():.1f} %) have a novelty above {_FAR:g}; of cells "
        f"like those of training at most 10 % have. Medians: distance to the nearest class {np.median(distance):.2f}, misfit "
        f"{np.median(misfit):+.2f} standard deviations."
    )
