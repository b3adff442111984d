"""How run folders are damaged, with a manifest that tells or one that agrees, as an attacker would make it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from trifold import store
from trifold.errors import FormatError

EVERY = (*store.FILES, store.MANIFEST)


def rewrite(run: Path, name: str, data: bytes) -> None:
    """Put other bytes into a file and make the manifest agree, as an attacker would."""
    (run / name).write_bytes(data)
    manifest = json.loads((run / store.MANIFEST).read_text())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (run / store.MANIFEST).write_text(json.dumps(manifest))


def edit(run: Path, name: str, change) -> None:
    value = json.loads((run / name).read_text())
    value = change(value) or value
    data = json.dumps(value).encode()
    if name == store.MANIFEST:
        (run / name).write_bytes(data)
    else:
        rewrite(run, name, data)


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(store.read_run(run)["weights"])


def put_weights(run: Path, weights: dict[str, torch.Tensor]) -> None:
    rewrite(run, store.WEIGHTS, save(weights))
    tensors = {k: {"shape": list(t.shape), "dtype": str(t.dtype)} for k, t in weights.items()}
    edit(run, store.MANIFEST, lambda m: m.update(tensors=tensors))


def spoil(kind: str, weights: dict[str, torch.Tensor]) -> str:
    name = next(k for k, t in weights.items() if t.is_floating_point() and t.dim() == 2)
    if kind == "missing":
        del weights[name]
    elif kind == "extra":
        name = "vae.planted"
        weights[name] = torch.zeros(1)
    elif kind == "shape":
        weights[name] = weights[name].T.contiguous()[:-1]
    elif kind == "dtype":
        weights[name] = weights[name].double()
    elif kind == "nan":
        weights[name] = weights[name].clone()
        weights[name][0, 0] = float("nan")
    elif kind == "inf":
        weights[name] = weights[name].clone()
        weights[name][-1, -1] = float("inf")
    return name


def flip(folder: Path, names: tuple[str, ...], times: int, read: Callable[[Path], object], seed: int = 0) -> None:
    """Flip single bits of files, anywhere; each must be refused, and by the name of the file if it is not the manifest."""
    rng = np.random.default_rng(seed)
    whole = {name: (folder / name).read_bytes() for name in names}
    sizes = np.array([len(data) for data in whole.values()])
    for name, share in zip(names, sizes / sizes.sum(), strict=True):
        for at in rng.integers(0, len(whole[name]), max(40, int(times * share))):
            broken = bytearray(whole[name])
            broken[at] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(bytes(broken))
            with pytest.raises(FormatError, match=None if name == store.MANIFEST else name):
                read(folder)
        (folder / name).write_bytes(whole[name])
    read(folder)
