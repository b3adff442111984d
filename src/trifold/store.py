"""Parts to and from a run folder: written whole or not at all, verified byte by byte, no pickle anywhere.

A folder holds ``card.json``, ``schema.json``, ``spec.json``, ``weights.safetensors``, ``history.csv`` and, written last, ``MANIFEST.json``
with the size and SHA-256 of each of them and the name, shape and dtype of every tensor.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trifold.errors import COPY, CheckpointError, CorruptModelError, FormatError, listing
from trifold.folders import MANIFEST, alone, checkpoints_of, dump, parse, read_folder, tensors_in, text, write_folder
from trifold.outputs import nearest

WEIGHTS = "weights.safetensors"
FILES = ("card.json", "schema.json", "spec.json", WEIGHTS, "history.csv")
WHAT = "The run folder"  # what messages call it


def write_run(path: str | Path, *, card: Any, schema: Any, spec: Any, weights: Mapping[str, Tensor], history: str) -> Path:
    """Write a run folder; a kill at any moment leaves the old one or the new one.

    Args:
        path: The folder. One that holds a run is replaced, and kept beside it as ``NAME.previous``.
        card, schema, spec: Plain data.
        weights: name -> tensor.
        history: Text of the training history.

    Returns:
        The folder.

    Raises:
        CheckpointError: The folder cannot be written, the disk is full, or the path holds something else than a run.
    """
    from safetensors.torch import save

    path = Path(path)
    check_writable(path)
    tensors = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    parts = {
        "card.json": dump(card),
        "schema.json": dump(schema),
        "spec.json": dump(spec),
        WEIGHTS: save(tensors),
        "history.csv": history.encode(),
    }
    write_folder(path, parts, tensors, previous=previous_of(path), what=WHAT)
    return path


def previous_of(path: Path) -> Path:
    """Where the earlier run is kept when a run folder is replaced: ``NAME.previous`` beside it."""
    return path.with_name(f"{path.name}.previous")


def read_run(path: str | Path) -> dict[str, Any]:
    """Read and verify a run folder.

    Args:
        path: The folder. If a kill left only ``NAME.previous``, that one is read.

    Returns:
        ``card``, ``schema``, ``spec`` (plain data), ``weights`` (name -> tensor), ``history`` (text).

    Raises:
        FormatError: Not a run folder, an unknown key, or a newer format.
        CorruptModelError: A file is missing, or its bytes are not those that were written.
    """
    path = Path(path)
    with alone(path.parent, shared=True):  # not while another process puts a new one in its place
        previous = previous_of(path) if path.name else path
        if not (path / MANIFEST).exists() and (previous / MANIFEST).exists():
            path = previous
        if not path.is_dir():
            raise FormatError(f"A run is a folder that Model.save or fit(out=...) wrote; {str(path)!r} is not a folder. Check the path.")
        parts, said = read_folder(path, FILES, what=WHAT)
    return {
        "card": parse(parts["card.json"], "card.json"),
        "schema": parse(parts["schema.json"], "schema.json"),
        "spec": parse(parts["spec.json"], "spec.json"),
        "weights": tensors_in(parts[WEIGHTS], said, WEIGHTS),
        "history": text(parts["history.csv"], "history.csv"),
    }


def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a module after comparing every name, shape and dtype.

    Raises:
        FormatError: Names are missing or extra, a shape or dtype differs, or a value is not finite.
    """
    for found in misfits(module, weights):
        raise FormatError(found)
    for found in not_finite(weights):
        raise CorruptModelError(found)
    module.load_state_dict(dict(weights))


def misfits(module: torch.nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """How weights do not fit a module, by name; no value is read, so a module on PyTorch's device ``meta`` will do.

    Args:
        module: Which they are for.
        weights: name -> tensor.

    Returns:
        A sentence each for names that are missing, names that are extra, and shapes or dtypes that differ.
    """
    own = module.state_dict()
    missing, extra = [n for n in own if n not in weights], [n for n in weights if n not in own]
    other = [
        f"{n} ({tuple(weights[n].shape)} {weights[n].dtype} for {tuple(t.shape)} {t.dtype})"
        for n, t in own.items()
        if n in weights and (weights[n].shape != t.shape or weights[n].dtype != t.dtype)
    ]
    kinds = (("lack", missing), ("hold unknown", extra), ("hold tensors of another shape or dtype:", other))
    return [f"The saved weights do not fit the saved specification: they {what} {listing(names)}. {COPY}" for what, names in kinds if names]


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Which weights hold NaN or infinity: one sentence, or none."""
    broken = [n for n, t in weights.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    return [f"The saved weights hold values that are not finite, in {listing(broken)}. {COPY}"] if broken else []


def check_writable(path: str | Path) -> None:
    """Find out before training whether a run can be written to a place.

    Raises:
        CheckpointError: The place holds something else than a run, or cannot be written. Nothing is left of the attempt.
    """
    path = Path(path)
    with alone(path.parent):
        _require_place(path)


def _require_place(path: Path) -> None:
    if not path.name:
        raise CheckpointError(
            f"A run is written to a folder with a name of its own; found {str(path)!r}. Choose a path that ends in a name."
        )
    if not os.path.exists(path):
        parent = nearest(path.parent)
        try:  # permissions alone do not tell: the folder may have vanished, the disk be read-only, the name too long
            os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=parent))
        except OSError as error:
            raise CheckpointError(
                f"The run folder {str(path)!r} cannot be made: {str(parent)!r} is not a folder that can be written to ({error.strerror}). "
                "Choose a path in one that can."
            ) from error
    for place in (path, previous_of(path)):
        if place.exists() and not (place.is_dir() and ((place / MANIFEST).exists() or not any(place.iterdir()))):
            raise CheckpointError(
                f"A run is written to a new folder or over an earlier run; {str(place)!r} holds something else. Choose another path."
            )
    checkpoints = checkpoints_of(path)
    if checkpoints.exists() and not checkpoints.is_dir():
        raise CheckpointError(f"Checkpoints are kept in {str(checkpoints)!r}, which is not a folder. Remove it, or choose another path.")
