"""The demo's second study: scanned digits with thin and thickened strokes, one digit never seen thickened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trifold import evaluate, report
from trifold.cli import show
from trifold.cli.files import write
from trifold.cli.scoring import held_combinations, page, score
from trifold.data import Schema
from trifold.data import open as open_data
from trifold.outputs import write_h5ad
from trifold.presets import trvae

if TYPE_CHECKING:
    from anndata import AnnData

_DIGIT, _FROM, _TO = "digit 3", "as scanned", "thickened"
_SIDE = 8  # pixels
_SHOWN = 10


def handwriting(folder: Path, *, quick: bool, seed: int) -> dict[str, Any]:
    """Train without one thickened digit, predict it, score it, draw it, and write it all.

    Each image is trained on either as scanned or thickened, never both: the data are unpaired. The other half of every pair is only used to
    score. The published decoder is taken, where the condition enters the first layer: where strokes grow depends on all of the image, which
    the plain decoder's smooth effects do not say. Its settings were tried on another digit. Ink is real-valued: as counts, a thickened
    digit would be read with the total ink of the thin one that it is made of.

    Args:
        folder: Where everything goes.
        quick: Fewer steps.
        seed: Of the split and of training.

    Returns:
        Facts for the demo's card.
    """
    adata = _digits(seed)
    show.say(f"2  Real handwriting: {adata.n_obs:,} images of {_SIDE} × {_SIDE} pixels, ten digits, as scanned or thickened", style="bold")
    show.say(f"   A thickened {_DIGIT[-1]} is never seen: it is predicted from scanned ones. No image is seen both ways.")
    hold_out = {"strokes": _TO, "digit": _DIGIT}
    schema = Schema.of(adata, condition="strokes", label="digit", kind="real")
    model = trvae(schema, published=True, latent=16, hidden=(256, 128), kl=1.0, seed=seed)
    model.fit(adata, hold_out=hold_out, seed=seed, out=folder / "run", epochs=15 if quick else 100, batch=128)
    write(folder / "data.h5ad", lambda p: write_h5ad(adata, p))
    where = {"strokes": _FROM, "digit": _DIGIT}
    predicted = model.predict(adata, {"strokes": _TO}, where=where, kind="residual", seed=seed)
    write(folder / "predicted.h5ad", lambda p: write_h5ad(predicted, p))
    source = open_data(adata)
    held = held_combinations(model, source)[0]
    table = score(model, source, held, seed=seed)
    write(folder / "scores.csv", lambda p: table.to_csv(p, index=False))
    show.scores(evaluate.averages(table), title=f"Thickened {_DIGIT[-1]}s, predicted from scanned ones")
    images, errors = _compared(adata, np.asarray(predicted.X))
    heads = ["RMSE of a pixel ↓"]
    rows = [(name, f"{value:.4f}") for name, value in errors.items()]
    show.table("Against the very same image, thickened (ink from 0 to 1)", ["", *heads], rows, numbers=heads)
    write(folder / "truth.csv", lambda p: pd.Series(errors, name="rmse").rename_axis("prediction").to_csv(p))
    panel = report.images(images, title=f"Scanned {_DIGIT[-1]}s with thickened strokes: never seen in training")
    write(folder / "images.png", lambda p: panel.savefig(p, dpi=130))
    figure = page(model, source, held, table, seed=seed, unit="ink (0 to 1)", feature="pixel")
    write(folder / "response.png", lambda p: figure.savefig(p, dpi=130))
    return {"hold_out": hold_out, "images": int(adata.n_obs), "truth": {name: round(value, 6) for name, value in errors.items()}}


def thicken(images: Any) -> Any:
    """[n, 8, 8] images whose strokes grow by a third of a pixel on all sides: dilated at three times the resolution, then averaged."""
    from scipy.ndimage import grey_dilation, zoom

    fine = zoom(images, (1, 3, 3), order=1, grid_mode=True, mode="nearest")
    return grey_dilation(fine, size=(1, 3, 3)).reshape(len(images), _SIDE, 3, _SIDE, 3).mean((2, 4))


def _digits(seed: int) -> AnnData:
    """Images x pixels, ink from 0 to 1; half of each digit's images are thickened. ``obsm["thickened"]`` holds all of them thickened."""
    import anndata
    from sklearn.datasets import load_digits

    found = load_digits()
    scanned = found.images / 16.0
    thick = thicken(scanned)
    order = np.random.default_rng([seed, 41]).permutation(len(scanned))
    order = order[np.argsort(found.target[order], kind="stable")]
    code = np.empty(len(order), dtype=np.int64)
    code[order] = np.arange(len(order)) % 2
    flat = np.where(code[:, None, None] == 1, thick, scanned).reshape(len(code), -1).astype(np.float32)
    obs = pd.DataFrame(
        {
            "strokes": pd.Categorical.from_codes(code, categories=[_FROM, _TO]),
            "digit": pd.Categorical([f"digit {k}" for k in found.target]),
        },
        index=[f"image_{i}" for i in range(len(code))],
    )
    pixels = pd.DataFrame(index=[f"r{i}c{j}" for i in range(_SIDE) for j in range(_SIDE)])
    return anndata.AnnData(flat, obs=obs, var=pixels, obsm={"thickened": thick.reshape(len(code), -1).astype(np.float32)})


def _compared(adata: AnnData, predicted: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """Images to draw, and the error of each prediction against the same images thickened."""
    own = np.flatnonzero(((adata.obs["strokes"] == _FROM) & (adata.obs["digit"] == _DIGIT)).to_numpy())
    thin, truth = np.asarray(adata.X)[own], np.asarray(adata.obsm["thickened"])[own]
    kept = ~((adata.obs["strokes"] == _TO) & (adata.obs["digit"] == _DIGIT)).to_numpy()
    labels = adata.obs[kept]
    shift = evaluate.NULLS["similar shift"](
        np.asarray(adata.X)[kept], labels["digit"], conditions=labels["strokes"], held=_DIGIT, source=_FROM, target=_TO
    )
    rivals = {"trvae": predicted, "null: similar shift": shift, "null: as scanned": thin}
    errors = {name: float(np.sqrt(np.mean((values - truth) ** 2))) for name, values in rivals.items()}
    drawn = {"as scanned": thin, "null: similar shift": shift, "trvae": predicted, "really thickened": truth}
    return {name: values[:_SHOWN].reshape(-1, _SIDE, _SIDE) for name, values in drawn.items()}, errors
