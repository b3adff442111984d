"""Geometry of a decoder's surface: metric, curvature, paths, directions. Knows nothing of models: it takes maps."""

from trifold.geometry.chain import Chain, chain_of
from trifold.geometry.curvature import Curvature, curvature
from trifold.geometry.metric import christoffel, metric, rectifier
from trifold.geometry.paths import Path, geodesic, straight, straightness
from trifold.geometry.signature import Signature, signature
from trifold.geometry.surface import Surface

__all__ = [
    "Chain",
    "Curvature",
    "Path",
    "Signature",
    "Surface",
    "chain_of",
    "christoffel",
    "curvature",
    "geodesic",
    "metric",
    "rectifier",
    "signature",
    "straight",
    "straightness",
]
