"""Matches the genes of a source to those of a schema by name, and says what is likely wrong when they do not match."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import numpy as np

from trifold.data.check import require_option
from trifold.data.source import PickedSource, Source
from trifold.errors import DataError, TrifoldWarning, listing

MISSING = ("error", "zero")
_ENSEMBL = re.compile(r"^ENS[A-Z]*[GT]\d{6,}(\.\d+)?$", re.IGNORECASE)


def align(source: Source, genes: tuple[str, ...], *, missing: str = "error") -> tuple[Source, list[str]]:
    """The source with exactly these genes in this order.

    Args:
        source: The cells; its genes have different names.
        genes: [g] names wanted.
        missing: Genes that the source lacks: ``"error"``, or ``"zero"`` to take them as zeros.

    Returns:
        (the source itself if its genes are these, else a :class:`PickedSource`; notices of what was dropped or taken as zero, which are
        also given as warnings).

    Raises:
        DataError: No gene matches, or genes are missing and that is not allowed.
    """
    require_option("missing", missing, MISSING)
    if source.genes == genes:
        return source, []
    at = {g: j for j, g in enumerate(source.genes)}
    columns = np.array([at.get(g, -1) for g in genes], dtype=np.int64)
    absent = [genes[j] for j in np.flatnonzero(columns < 0)]
    if len(absent) == len(genes):
        raise DataError(f"{source.where}: 0 of {len(genes)} genes match.{alike(source.genes, genes)} Rename adata.var_names to match.")
    if absent and missing == "error":
        raise DataError(
            f"{source.where} lacks {len(absent)} of the {len(genes)} genes of the model: {listing(absent)}.{alike(source.genes, absent)} "
            "Add them, or pass missing='zero' to take them as zeros."
        )
    notices = []
    if absent:
        notices.append(f"{len(absent)} of {len(genes)} genes are missing in {source.where} and are taken as zeros: {listing(absent)}.")
    extra = len(source.genes) - (len(genes) - len(absent))
    if extra:
        wanted = set(genes)
        names = [g for g in source.genes if g not in wanted]
        notices.append(f"{extra} genes of {source.where} are not part of the model and are left out: {listing(names)}.")
    for notice in notices:
        warnings.warn(notice, TrifoldWarning, stacklevel=3)
    return PickedSource(source, columns=columns, genes=genes), notices


def alike(found: Sequence[str], wanted: Sequence[str]) -> str:
    """A sentence, after a blank, on how names differ: version suffix, case, or another kind of identifier; else the first of each."""
    have = set(found)
    for what, change in (("the version suffix", _unversioned), ("case", str.upper)):
        other = {change(g) for g in have}
        same = sum(change(g) in other for g in wanted)
        if same > len(wanted) / 2:
            return f" They match but for {what} ({same} of {len(wanted)}; here {found[0]!r})."
    kinds = _kind(found), _kind(wanted)
    if kinds[0] != kinds[1]:
        return f" These look like {kinds[0]} ({listing(found, 2)}), the model's like {kinds[1]} ({listing(wanted, 2)})."
    return f" Here: {listing(found, 3)}; the model's: {listing(wanted, 3)}."


def _unversioned(name: str) -> str:
    return re.sub(r"\.\d+$", "", name)


def _kind(names: Sequence[str]) -> str:
    some = names[:200]
    if sum(bool(_ENSEMBL.match(g)) for g in some) > len(some) / 2:
        return "Ensembl identifiers"
    if sum(g.isdigit() for g in some) > len(some) / 2:
        return "Entrez identifiers or positions"
    if sum(bool(re.match(r"^gene_\d+$", g)) for g in some) > len(some) / 2:
        return "positions in an array without names"
    return "gene symbols"
