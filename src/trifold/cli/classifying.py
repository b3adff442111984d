"""``trifold classify``: labels with their probabilities to a file, how many of each and how well calibrated to the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape

from trifold.cli import show
from trifold.cli.answers import asked
from trifold.cli.files import write


def write_labels(
    run: Path,
    data: Path,
    out: Path,
    *,
    reject: float,
    probabilities: bool,
    device: str,
    missing: str,
    unknown: Sequence[str] | None,
    trust: Sequence[str],
    force: bool,
) -> None:
    """Label, probability and whether it is declined, of each cell, to .csv.

    Raises:
        TrifoldError: As ``load`` and ``Model.classify``, or an output that cannot be written.
    """
    model, source, policy = asked(run, data, out, (".csv",), unknown=unknown, trust=trust, force=force)
    table = model.classify(source, reject=reject, probabilities=probabilities, missing=missing, unknown=policy, device=device)
    write(out, lambda path: table.to_csv(path, index_label="cell"))
    _counts(table)
    declined = int(table["rejected"].sum())
    show.say(f"{out}: {len(table):,} cells; {declined:,} ({100 * declined / max(1, len(table)):.1f} %) rejected, below {reject:g}")
    show.say(calibrated(model.card.get("calibration", {})))


def calibrated(about: Mapping[str, Any]) -> str:
    """How right and how well calibrated the answers were on labelled cells that training watched."""
    cells = about.get("cells", 0)
    if about.get("accuracy") is None:
        return f"Not calibrated: {cells:,} labelled cells were watched in training."
    return (
        f"On {cells:,} labelled cells of known batches, watched in training and not trained on: accuracy {about['accuracy']:.3f}, "
        f"calibration error {about['ece_after']:.3f} (before tempering {about['ece_before']:.3f})"
    )


def _counts(table: pd.DataFrame) -> None:
    """Cells of each label, how many of them are declined, and how sure the model is."""
    parts = [(str(name), part) for name, part in table.groupby("label", observed=True)]
    parts.sort(key=lambda part: -len(part[1]))
    heads = ["cells", "rejected", "median probability"]
    rows = [(escape(n), f"{len(p):,}", f"{int(p['rejected'].sum()):,}", f"{np.median(p['probability']):.3f}") for n, p in parts]
    show.table("", ["label", *heads], rows, numbers=heads)
