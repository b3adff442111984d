"""``trifold demo``: the main job from nothing to pictures, on data whose truth is known and on real handwriting."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from trifold import __version__
from trifold.cli import show
from trifold.cli.handwriting import handwriting
from trifold.cli.simulated import simulated
from trifold.errors import CheckpointError
from trifold.outputs import replacing, writing

_MARK = "demo.json"  # written last: a folder that has it is a demo's, and may be replaced

_READ = """
Read the scores so: a model that does not beat the best null has learned nothing that could not have been typed; the ceiling is how well
one half of the real cells predicts the other half. Pearson and RMSE are of the change of the mean against the source cells. E-distance,
and the concordance of variances and of shares of zeros, say whether the predicted cells are spread as real ones are.
"""

_OWN = """  trifold check data.h5ad --condition condition --label cell_type
  trifold fit data.h5ad --condition condition --genes 2000 --hold-out condition=stimulated --hold-out "cell_type=CD14+Mono" --out run
  trifold evaluate run data.h5ad --out scores.csv --plots plots
  trifold predict run data.h5ad --to condition=stimulated --where condition=control --where "cell_type=CD14+Mono" --out predicted.h5ad
  trifold latent run data.h5ad --out latent.h5ad"""


def demonstrate(out: Path, *, quick: bool, seed: int) -> None:
    """Run both studies and write everything to a folder, which is there whole or not at all.

    Args:
        out: The folder; one that an earlier demo wrote is replaced.
        quick: Smaller data and fewer steps.
        seed: Of data and training.

    Raises:
        CheckpointError: The folder holds something else, or cannot be written.
    """
    began = time.perf_counter()
    if out.exists() and not (out.is_dir() and ((out / _MARK).exists() or not any(out.iterdir()))):
        raise CheckpointError(f"{str(out)!r} holds something other than an earlier demo. Choose another --out.")
    with replacing(out) as part, writing(out):
        part.mkdir()
        facts: dict[str, Any] = {"version": __version__, "seed": seed, "quick": quick}
        facts["simulated"] = simulated(part / "simulated", quick=quick, seed=seed)
        facts["handwriting"] = handwriting(part / "handwriting", quick=quick, seed=seed)
        facts["seconds"] = round(time.perf_counter() - began, 1)
        (part / _MARK).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    show.say(_READ)
    files = [(str(p.relative_to(out)), f"{p.stat().st_size / 1e6:.2f} MB") for p in sorted(out.glob("*/*")) if p.is_file()]
    runs = [(str(p.parent.relative_to(out)), "run folder: trifold show " + str(p.parent)) for p in sorted(out.glob("*/*/card.json"))]
    show.table(f"Written to {out} in {facts['seconds']:.0f} s", ["file", ""], [*files, *runs])
    show.say("Look again at what was made:", style="bold")
    show.say(f"  trifold show {out}/simulated/run")
    show.say(f"  trifold evaluate {out}/simulated/run {out}/simulated/data.h5ad")
    show.say("With data of your own (counts in X, or name the layer: --x counts):", style="bold")
    show.say(_OWN)
