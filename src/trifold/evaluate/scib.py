"""The metrics of scib-metrics, raw and as its Benchmarker calls them, with all that it changes in the process put back."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifold.errors import EvaluationError
from trifold.evaluate.mixing import Codes, Points

BATCH = ("bras", "ilisi", "kbet", "graph_connectivity", "pcr_comparison")
BIO = ("isolated_labels", "kmeans_nmi", "kmeans_ari", "silhouette_label", "clisi")
BESIDE = ("leiden_nmi", "leiden_ari")  # off in the Benchmarker's defaults, so in no mean
NEIGHBOURS = 90  # of its LISI; kBET takes the first 50 and the two graphs the first 15


def measure(z: Points, before: Points, batch: Codes, label: Codes, seed: int) -> dict[str, float]:
    """All five batch metrics, all five bio metrics and the two of Leiden, on the scale of scib-metrics: 0 to 1, higher is better.

    Called as the Benchmarker of version 0.5.10 calls them, with ``min_max_scale=False``. What the numbers then mean:

    - ``bras`` uses cosines, so it changes when the origin of the latent moves; all others use Euclidean distances.
    - ``kmeans_nmi``, ``kmeans_ari`` come from one start of k-means, which is given by the order of the cells.
    - ``ilisi`` is scaled by the number of batches: batches of unequal size stay under 1 however well they mix.
    - ``pcr_comparison`` is 0 where the batch explains more after than before, however much more. Coordinates that do not vary are
      left out of it, which changes nothing but that scib-metrics would give NaN.
    - ``kbet`` takes fewer diffusion components for all labels that sort after a label of 100 cells or fewer.
    - ``isolated_labels`` is the silhouette of the labels found in the fewest batches: of all labels, where all are in all batches.

    Args:
        z: [n, d] latent.
        before: [n, k] before integration.
        batch, label: [n] codes from 0.
        seed: Of the search for neighbours; the Benchmarker's is 0. K-means and Leiden keep seeds of their own.

    Returns:
        Metric -> value. NaN where scib-metrics gives NaN.

    Raises:
        EvaluationError: scib-metrics is not installed, or there are too few cells for its neighbours.

    Source: Luecken et al., Nature Methods 19 (2022); Rautenstrauch and Ohler, Nature Biotechnology (2025) for BRAS.
    """
    if len(z) <= NEIGHBOURS:
        raise EvaluationError(
            f"metrics='scib' needs more than {NEIGHBOURS} cells, for its neighbours; found {len(z)}. Pass metrics='light'."
        )
    with _left_as_found():
        scib = _package()
        x, pre = z.astype(np.float32), before.astype(np.float32)
        near = scib.nearest_neighbors.pynndescent(x, n_neighbors=NEIGHBOURS, random_state=seed, n_jobs=1)
        graph = near.subset_neighbors(n=15)
        kmeans = scib.nmi_ari_cluster_labels_kmeans(x, label)
        leiden = scib.nmi_ari_cluster_labels_leiden(graph, label, n_jobs=1)
        out = {
            "bras": scib.bras(x, label, batch),
            "ilisi": scib.ilisi_knn(near, batch),
            "kbet": scib.kbet_per_label(near.subset_neighbors(n=50), batch, label),
            "graph_connectivity": scib.graph_connectivity(graph, label),
            "pcr_comparison": scib.pcr_comparison(_varying(pre), _varying(x), batch, categorical=True),
            "isolated_labels": scib.isolated_labels(x, label, batch),
            "kmeans_nmi": kmeans["nmi"],
            "kmeans_ari": kmeans["ari"],
            "silhouette_label": scib.silhouette_label(x, label),
            "clisi": scib.clisi_knn(near, label),
            "leiden_nmi": leiden["nmi"],
            "leiden_ari": leiden["ari"],
        }
    return {name: float(value) for name, value in out.items()}


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on.

    Raises:
        EvaluationError: scib-metrics is not installed.
    """
    with _left_as_found():
        _package()
    return {name: version(name) for name in ("scib-metrics", "jax", "scanpy")}


def _varying(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The coordinates that are not constant; all where all are."""
    moves = x.min(0) < x.max(0)
    return x[:, moves] if moves.any() else x


def _package() -> Any:
    try:
        scib = import_module("scib_metrics")
    except ImportError as missing:
        raise EvaluationError(
            f"metrics='scib' needs the package scib-metrics; found none that can be imported ({missing}). "
            "Pass metrics='light', or type: pip install 'trifold[integration]'"
        ) from missing
    logging.getLogger("scib_metrics").setLevel(logging.ERROR)  # it prints at INFO
    return scib


@contextmanager
def _left_as_found() -> Iterator[None]:
    """Undo what scib-metrics and what it imports do to logging, the environment, warnings, threads and global generators."""
    from threadpoolctl import threadpool_limits

    root, own = logging.getLogger(), logging.getLogger("scib_metrics")
    handlers, level, own_level, environment = list(root.handlers), root.level, own.level, dict(os.environ)
    drawn: Any = np.random.get_state()
    python = random.getstate()
    with warnings.catch_warnings(), threadpool_limits(limits=1, user_api="openmp"):  # numba would leave OpenMP with all cores
        warnings.simplefilter("ignore")  # its own on small labels and clipped scores, both said in the docstrings
        try:
            yield
        finally:
            root.handlers[:] = handlers  # a first call of logging.info puts a handler on the root
            root.setLevel(level)
            own.setLevel(own_level)
            for name in set(os.environ) - set(environment):
                del os.environ[name]
            os.environ.update(environment)
            np.random.set_state(drawn)
            random.setstate(python)
            if "igraph" in sys.modules:  # Leiden gave it a generator of its own; this is the one that it starts with
                sys.modules["igraph"].set_random_number_generator(random)
