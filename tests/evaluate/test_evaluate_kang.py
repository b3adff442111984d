"""The five nulls and the ceiling on real data, against figures computed by hand-written numpy under the same convention."""

from functools import partial

import numpy as np
import pytest
from evaluate_cases import shared

from trifold.evaluate import NULLS, averages, leave_combinations_out


@pytest.fixture(scope="module")
def table():
    return leave_combinations_out(
        shared("kang_scgen_valid"),
        {},
        condition="condition",
        group="cell_type",
        source="control",
        target="stimulated",
        seeds=(0,),
        de=(),
        nulls={**NULLS, **{f"clipped {name}": partial(NULLS[name], clip=True) for name in ("mean shift", "similar shift")}},
    )


def test_nulls_on_kang_reach_the_figures_of_the_convention(table):
    out = averages(table)
    # by hand: Pearson 0.78 and 0.74; E as a biased V-statistic 1.09 to 1.20 and 3.58 to 3.67, of which 0.3 to 0.4 is bias
    assert out.loc[("null model", "similar shift"), "pearson_delta"] == pytest.approx(0.781, abs=0.01)
    assert out.loc[("null model", "mean shift"), "pearson_delta"] == pytest.approx(0.737, abs=0.01)
    assert out.loc[("null model", "similar shift"), "e_distance"] == pytest.approx(0.795, abs=0.1)
    assert out.loc[("null model", "mean shift"), "e_distance"] == pytest.approx(3.27, abs=0.15)
    assert out.loc[("null model", "control"), "pearson_delta"] == 0


def test_clipped_shifts_on_kang_have_the_energy_distances_of_the_design_notes(table):
    out = averages(table)["e_distance"]
    assert out["null model", "clipped similar shift"] == pytest.approx(0.89, abs=0.05)
    assert out["null model", "clipped mean shift"] == pytest.approx(3.2, abs=0.1)


def test_the_similarity_weighted_shift_is_near_the_ceiling_on_monocytes(table):
    own = averages(table[table.group == "CD14+Mono"])
    assert own.loc[("null model", "similar shift"), "pearson_delta"] == pytest.approx(0.95, abs=0.01)
    assert own.loc[("null model", "mean shift"), "pearson_delta"] == pytest.approx(0.82, abs=0.01)
    assert own.loc[("null model", "similar shift"), "e_distance"] == pytest.approx(1.17, abs=0.25)


def test_the_ceiling_beats_every_null_on_kang(table):
    out = averages(table)
    best = out.loc["null model"]
    top = out.loc[("ceiling", "ceiling")]
    for metric in (
        "r2_mean",
        "r2_var",
        "pearson_delta",
        "pearson_delta_top20",
        "pearson_centroid",
        "variance_concordance",
        "zero_concordance",
    ):
        assert top[metric] > best[metric].max(), metric
    for metric in ("rmse_delta", "e_distance", "mmd2"):
        assert top[metric] < best[metric].min(), metric
    assert abs(top["mmd2"]) < 0.01
    assert np.isfinite(out.to_numpy()).all()
