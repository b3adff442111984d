"""Data to minibatches: what the data are (``Schema``), where they come from (``open``), and how a model reads them (``Cells``)."""

from trifold.data import sampling, splits
from trifold.data.cells import Cells, encode
from trifold.data.check import Findings, check
from trifold.data.columns import Category, Number
from trifold.data.confounding import disconnected
from trifold.data.covariates import ROLES, UNKNOWN
from trifold.data.reading import batches
from trifold.data.resident import Resident, fits
from trifold.data.sampling import Balanced, Shuffled
from trifold.data.schema import Schema
from trifold.data.simulate import Study, simulate
from trifold.data.source import Source, open
from trifold.data.splits import by_fraction, held_out

samplers = sampling

__all__ = [
    "ROLES",
    "UNKNOWN",
    "Balanced",
    "Category",
    "Cells",
    "Findings",
    "Number",
    "Resident",
    "Schema",
    "Shuffled",
    "Source",
    "Study",
    "batches",
    "by_fraction",
    "check",
    "disconnected",
    "encode",
    "fits",
    "held_out",
    "open",
    "samplers",
    "sampling",
    "simulate",
    "splits",
]
