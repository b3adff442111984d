"""Terms of an objective, one summand per file."""

from trifold.terms.base import Term
from trifold.terms.curvature import Curvature
from trifold.terms.elbo import KL, NLL
from trifold.terms.isometry import Isometry
from trifold.terms.mmd import MMD, mmd2, mmd2_groups
from trifold.terms.objective import Objective
from trifold.terms.shrinkage import Shrinkage

__all__ = ["KL", "MMD", "NLL", "Curvature", "Isometry", "Objective", "Shrinkage", "Term", "mmd2", "mmd2_groups"]
