# SPDX-License-Identifier: BSD-3-Clause
"""What scvi-tools does with items 1 to 42 of the reliability scorecard: one function each, giving (1 or 0, what happened)."""

import re
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scorecard_scvi_study import CELLS, GENES, Answer, counts, finite, fitted, refused, study, warned, with_value, works
from scvi.model import SCVI

# -- A. counts and matrices ----------------------------------------------------------------------------------------------------------


def item_01() -> Answer:
    return refused(lambda: fitted(with_value(np.nan)), "counts", "GENE3|cell_17|row 17")


def item_02() -> Answer:
    return refused(lambda: fitted(with_value(np.inf)), "counts", "GENE3|cell_17|row 17")


def item_03() -> Answer:
    return refused(lambda: fitted(with_value(-3.0)), "GENE3", "cell_17|row 17")


def item_04() -> Answer:
    x = np.random.default_rng(0).normal(size=(CELLS, GENES)).astype(np.float32)
    a = study(x)
    return works(
        finite(fitted(a, gene_likelihood="normal", log_variational=False, use_observed_lib_size=False)),
        "finite with gene_likelihood='normal'",
    )


def item_05() -> Answer:
    x = counts()
    x[7, 0] = 0.5
    return refused(lambda: fitted(study(sp.csr_matrix(x))), "%|[0-9]+ values", "GENE0|cell_7|row 7")


def item_06() -> Answer:
    x = np.log1p(counts() / counts().sum(1, keepdims=True) * 1e4)
    return refused(lambda: fitted(study(sp.csr_matrix(x))), "log")


def item_07() -> Answer:
    x = np.log1p(counts())
    return refused(lambda: fitted(study(((x - x.mean(0)) / x.std(0)).astype(np.float32))), "scaled|negative")


def item_08() -> Answer:
    x = counts()
    x[7] = 0
    return refused(lambda: fitted(study(sp.csr_matrix(x))), "7")


def item_09() -> Answer:
    x = counts()
    x[:, 4] = 0
    a = study(sp.csr_matrix(x))
    return warned(lambda: fitted(a), "GENE4")


def item_10() -> Answer:
    x = counts()
    x[:, 5] = 3
    return works(finite(fitted(study(sp.csr_matrix(x)))), "trains finite")


def item_11() -> Answer:
    x = counts()
    x[3, 4:6] = 1e7
    model = fitted(study(sp.csr_matrix(x)))
    size = model.get_latent_library_size(give_mean=False)[3, 0]
    return works(finite(model) and abs(size - x[3].astype(np.float64).sum()) <= 2, f"finite, library size {size:.0f}")


def item_12() -> Answer:
    x = counts().astype(np.float64)
    x[3, 4] = 70000
    with np.errstate(over="ignore"):
        return refused(lambda: fitted(study(x.astype(np.float16))), "float16")


def item_13() -> Answer:
    truth = None
    for dtype in ("float32", "uint8", "uint16", "int8", "int64", "bool"):
        x = (counts() > 0) if dtype == "bool" else counts().astype(dtype)
        torch.manual_seed(0)
        got = fitted(study(sp.csr_matrix(x))).get_latent_representation()
        truth = got if truth is None else truth
        if not np.isfinite(got).all():
            return 0, f"{dtype}: not finite"
    return refused(lambda: fitted(study(counts().astype(object))), "object")


def item_14() -> Answer:
    first = refused(lambda: fitted(study(counts().astype(np.complex64))), "complex")
    return first if not first[0] else refused(lambda: fitted(study(counts().astype("U8"))), "U8|str|text")


def item_15() -> Answer:
    def damaged() -> SCVI:
        m = sp.csr_matrix(counts())
        a = study(m)
        a.layers["counts"].indices[7] = 2**30
        return fitted(a)

    return refused(damaged, "indices|index", "counts")


def item_16() -> Answer:
    def damaged() -> SCVI:
        a = study(sp.csr_matrix(counts()))
        a.layers["counts"].indptr[5] = a.layers["counts"].indptr[7]
        return fitted(a)

    return refused(damaged, "indptr|pointer", "counts")


def _same(make: dict[str, Callable[[], Any]]) -> Answer:
    """Latents of one model for other forms of the same counts."""
    base = study()
    model = fitted(base)
    truth = model.get_latent_representation(base)
    for name, form in make.items():
        try:
            other = study(form())
            same = np.array_equal(model.get_latent_representation(other), truth)
        except Exception as error:
            return 0, f"{name}: {type(error).__name__}: {str(error)[:120]}"
        if not same:
            return 0, f"{name}: other latents"
    return 1, f"equal latents: {', '.join(make)}"


def item_17() -> Answer:
    def odd() -> Any:
        m = sp.csr_matrix(counts())
        twice = sp.csr_matrix((np.repeat(m.data / 2, 2), np.repeat(m.indices, 2), m.indptr * 2), shape=m.shape)
        for r in range(CELLS):
            part = slice(twice.indptr[r], twice.indptr[r + 1])
            twice.indices[part] = twice.indices[part][::-1]
            twice.data[part] = twice.data[part][::-1]
        twice.has_sorted_indices = twice.has_canonical_format = False
        return twice

    return _same({"unsorted and repeated": odd})


def item_18() -> Answer:
    x = counts()
    return _same(
        {
            "csc": lambda: sp.csc_matrix(x),
            "csr_array": lambda: sp.csr_array(x),
            "dense": lambda: x.copy(),
            "DataFrame": lambda: pd.DataFrame(x, index=study().obs_names, columns=study().var_names),
        }
    )


def item_20() -> Answer:
    def fixed() -> np.ndarray:
        x = counts()
        x.setflags(write=False)
        return x

    return _same({"Fortran": lambda: np.asfortranarray(counts()), "read-only": fixed, "big-endian": lambda: counts().astype(">f4")})


def item_21() -> Answer:
    a = study()
    a.X = sp.csr_matrix(counts())
    del a.layers["counts"]
    model = fitted(a, layer=None)
    truth = model.get_latent_representation(a)
    a.write_h5ad("a.h5ad")
    backed = anndata.read_h5ad("a.h5ad", backed="r")
    order = np.random.default_rng(0).permutation(CELLS)
    whole = model.get_latent_representation(backed)
    picked = model.get_latent_representation(backed, indices=order)
    good = np.array_equal(whole, truth) and np.array_equal(picked, truth[order])
    return works(good, "backed latents are those of memory, in the order asked for")


def item_22() -> Answer:
    a = study()
    before = (list(a.obs.columns), list(a.uns), a.layers["counts"].data.tobytes())
    fitted(a[5:50:3].copy())
    view = a[5:50:3]
    try:
        fitted(view)
    except Exception as error:
        return 0, f"a view is refused: {type(error).__name__}: {str(error)[:120]}"
    return works(before == (list(a.obs.columns), list(a.uns), a.layers["counts"].data.tobytes()), "parent unchanged")


# -- B. shapes, names, categories ----------------------------------------------------------------------------------------------------


def item_23() -> Answer:
    first = refused(lambda: fitted(study()[:0].copy()), "cell|observation")
    return first if not first[0] else refused(lambda: fitted(study()[:, :0].copy()), "gene|variable")


def item_24() -> Answer:
    model = fitted(study())
    good = model.get_latent_representation(study()[17].copy()).shape == (1, 3)
    return works(good, "one cell is embedded") if not good else refused(lambda: fitted(study()[17].copy()), "cell")


def item_25() -> Answer:
    a = study()
    a.var_names = ["GENE0"] * 2 + [f"GENE{j}" for j in range(2, GENES)]
    return refused(lambda: fitted(a), "GENE0")


def item_26() -> Answer:
    def act() -> None:
        a = study()
        a.obs_names = ["cell_0"] * 2 + [f"cell_{j}" for j in range(2, CELLS)]
        fitted(a)

    return warned(act, "[Oo]bservation names|cell")


def item_27() -> Answer:
    a = study()
    model = fitted(a)
    truth = model.get_latent_representation(a)
    order = np.random.default_rng(1).permutation(GENES)
    got = model.get_latent_representation(a[:, order].copy())
    r = np.corrcoef(got.ravel(), truth.ravel())[0, 1]
    return works(np.array_equal(got, truth), f"identical latents (r = {r:.2f})")


def item_28() -> Answer:
    model = fitted(study())
    return refused(lambda: model.get_latent_representation(study()[:, :19].copy()), "GENE19")


def item_29() -> Answer:
    model = fitted(study())
    wide = sp.csr_matrix(np.hstack([np.ones((CELLS, 1), np.float32), counts()]))
    names = pd.DataFrame(index=["EXTRA", *study().var_names])
    extra = anndata.AnnData(wide, obs=study().obs, var=names, layers={"counts": wide})
    truth = model.get_latent_representation(study())
    return works(np.array_equal(model.get_latent_representation(extra), truth), "extra genes are dropped")


def item_30() -> Answer:
    model = fitted(study())
    a = study()
    a.var_names = [f"ENSG{j:011d}" for j in range(GENES)]
    return refused(lambda: model.get_latent_representation(a), "0 of|match|Ensembl|var_names")


def item_31() -> Answer:
    model = fitted(study())
    a = study()
    a.obs["condition"] = pd.Categorical(["other"] * CELLS)
    return refused(lambda: model.get_latent_representation(a), "condition", "other", "stimulated")


def item_32() -> Answer:
    a = study()
    a.obs["condition"] = a.obs["condition"].cat.add_categories(["never"])
    model = fitted(a)
    return works(finite(model) and model.summary_stats["n_batch"] == 2, f"{model.summary_stats['n_batch']} batches of 2")


def item_33() -> Answer:
    a = study()
    a.obs.loc[a.obs_names[5], "condition"] = np.nan
    return refused(lambda: fitted(a), "condition", "1 ")


def item_34() -> Answer:
    a = study()
    a.obs.loc[a.obs_names[5], "dose"] = np.nan
    return refused(lambda: fitted(a, setup={"continuous_covariate_keys": ["dose"]}), "dose")


def item_35() -> Answer:
    for values in ([1, 2], [True, False], [1, "1"]):
        a = study()
        a.obs["condition"] = pd.Series([values[k % 2] for k in range(CELLS)], index=a.obs_names, dtype=object).astype("category")
        model = fitted(a)
        truth = model.get_latent_representation(a)
        model.save("m", overwrite=True)
        if not np.array_equal(SCVI.load("m", adata=a).get_latent_representation(a), truth):
            return 0, f"{values}: other latents on reload"
    return 1, "equal latents on reload"


def item_36() -> Answer:
    for name in ("a/b", "line\nbreak", "x" * 10_000, "ünï", ""):
        a = study()
        a.obs["condition"] = pd.Categorical(np.array(["control", name])[np.arange(CELLS) % 2])
        model = fitted(a)
        model.save("m", overwrite=True)
        SCVI.load("m", adata=a).get_latent_representation(a)
    return 1, "round trip"


def item_40() -> Answer:
    a = study()
    a.obs["copy"] = a.obs["condition"].astype(str)
    return warned(lambda: fitted(a, setup={"categorical_covariate_keys": ["copy"]}), "copy|confounded|identif")


def item_41() -> Answer:
    first = refused(lambda: fitted(study(), setup={"batch_key": "conditon"}), "condition'|cell_type")
    return first if not first[0] else refused(lambda: fitted(study(), setup={"labels_key": "condition"}), "condition")


def item_42() -> Answer:
    return works(finite(fitted(study()[:33].copy(), train={"train_size": 1.0})), "33 cells, batches of 16: trains finite")


FAULTS = {int(name[5:]): act for name, act in list(globals().items()) if re.fullmatch(r"item_\d\d", name)}
