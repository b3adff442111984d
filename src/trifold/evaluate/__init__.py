"""How good a model is, in metrics that can be computed by hand and beside nulls and ceilings. Knows no model."""

from trifold.evaluate.calibration import Calibration, calibration
from trifold.evaluate.ceilings import ceiling, halves
from trifold.evaluate.distance import e_distance, median_bandwidth, mmd2
from trifold.evaluate.fates import fate
from trifold.evaluate.folds import Fold, make_fold
from trifold.evaluate.genes import top_genes, variable_genes
from trifold.evaluate.integration import integration
from trifold.evaluate.leaveout import Embedding, leave_classes_out, unseen
from trifold.evaluate.nulls import NULLS
from trifold.evaluate.preservation import condition, geometry
from trifold.evaluate.probes import leakage, probes
from trifold.evaluate.ranking import de_genes, de_overlap, discrimination
from trifold.evaluate.response import (
    bootstrap,
    concordance,
    correlation,
    pearson_delta,
    r2_mean,
    r2_var,
    rmse_delta,
    variance_concordance,
    zero_concordance,
)
from trifold.evaluate.runner import InScoreSpace, leave_combinations_out
from trifold.evaluate.score import higher_is_better, score
from trifold.evaluate.space import fit_pca, kind_of, lognorm, project
from trifold.evaluate.summary import averages, summary
from trifold.evaluate.truth import draws_error, log_change, mean_error

__all__ = [
    "NULLS",
    "Calibration",
    "Embedding",
    "Fold",
    "InScoreSpace",
    "averages",
    "bootstrap",
    "calibration",
    "ceiling",
    "concordance",
    "condition",
    "correlation",
    "de_genes",
    "de_overlap",
    "discrimination",
    "draws_error",
    "e_distance",
    "fate",
    "fit_pca",
    "geometry",
    "halves",
    "higher_is_better",
    "integration",
    "kind_of",
    "leakage",
    "leave_classes_out",
    "leave_combinations_out",
    "log_change",
    "lognorm",
    "make_fold",
    "mean_error",
    "median_bandwidth",
    "mmd2",
    "pearson_delta",
    "probes",
    "project",
    "r2_mean",
    "r2_var",
    "rmse_delta",
    "score",
    "summary",
    "top_genes",
    "unseen",
    "variable_genes",
    "variance_concordance",
    "zero_concordance",
]
