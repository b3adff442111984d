"""Terms of an objective, one summand per file."""

from trifold.terms.base import Term
from trifold.terms.conditional_mmd import ConditionalMMD
from trifold.terms.curvature import Curvature
from trifold.terms.elbo import KL, NLL
from trifold.terms.hsic import HSIC, hsic
from trifold.terms.isometry import Isometry
from trifold.terms.mmd import MMD, mmd2, mmd2_groups
from trifold.terms.objective import Objective
from trifold.terms.predictor import Predictor
from trifold.terms.probe import Probe
from trifold.terms.score_matching import ScoreMatching, score_matching
from trifold.terms.shrinkage import Shrinkage
from trifold.terms.total_correlation import TotalCorrelation, total_correlation

__all__ = [
    "HSIC",
    "KL",
    "MMD",
    "NLL",
    "ConditionalMMD",
    "Curvature",
    "Isometry",
    "Objective",
    "Predictor",
    "Probe",
    "ScoreMatching",
    "Shrinkage",
    "Term",
    "TotalCorrelation",
    "hsic",
    "mmd2",
    "mmd2_groups",
    "score_matching",
    "total_correlation",
]
