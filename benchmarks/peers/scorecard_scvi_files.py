# SPDX-License-Identifier: BSD-3-Clause
"""What scvi-tools does with items 43 to 60 of the reliability scorecard: one function each, giving (1 or 0, what happened)."""

import os
import pickle
import re
import resource
import signal
import time
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import torch
from scorecard_scvi_study import CELLS, QUIET, Answer, finite_weights, fitted, refused, study, untrained, works
from scvi.model import SCVI

# -- C. training ---------------------------------------------------------------------------------------------------------------------


def with_weights(got: Answer, model: SCVI) -> Answer:
    """The answer, and whether the weights are finite still, as item 43 asks."""
    state = finite_weights(model)
    return int(got[0] and state), f"{got[1]}; weights {'finite' if state else 'NaN'}"


def item_43() -> Answer:
    model = untrained(study())
    plain, calls = model.module.loss, [0]

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **kwargs)
        calls[0] += 1
        if calls[0] == 4:
            out.loss = out.loss * float("nan")
        return out

    model.module.loss = poisoned
    got = refused(lambda: model.train(**QUIET), "step|term|loss", before_training=False)
    return with_weights(got, model)


def item_44() -> Answer:
    model = untrained(study())
    got = refused(lambda: model.train(**{**QUIET, "max_epochs": 20}, plan_kwargs={"lr": 1e3}), "step|lr", before_training=False)
    return with_weights(got, model)


def item_45() -> Answer:
    model = untrained(study())
    plain, calls = model.module.loss, [0]

    def stopped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*args, **kwargs)

    model.module.loss = stopped
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what it starts in the background
    try:
        model.train(**QUIET)
        end = "train returned as if it had finished"
    except BaseException as error:
        end = type(error).__name__
    left = sorted(str(p) for p in Path().rglob("*.ckpt"))
    return int(bool(left)), f"Ctrl-C: {end}; checkpoint: {left or 'none'}"


def _saver(model: SCVI, times: int, most: int | None = None) -> int:
    """A forked process that saves the model to ``m`` again and again; its id. No file may have more than ``most`` bytes."""
    child = os.fork()
    if child == 0:
        try:
            if most is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            for _ in range(times):
                model.save("m", overwrite=True)
        finally:
            os._exit(0)
    return child


def _loads(a: anndata.AnnData) -> bool:
    try:
        SCVI.load("m", adata=a)
    except Exception:
        return False
    return True


def item_46() -> Answer:
    a = study()
    model = fitted(a)
    rng, good = np.random.default_rng(0), 0
    for _ in range(50):
        model.save("m", overwrite=True)
        child = _saver(model, 10_000)
        time.sleep(0.005 + 0.05 * rng.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        good += _loads(a)
    return works(good == 50, f"{good} of 50 kills leave a model that loads")


def item_47() -> Answer:
    a = study()
    model = fitted(a)
    model.save("m", overwrite=True)
    size = Path("m/model.pt").stat().st_size
    os.waitpid(_saver(model, 1, size // 2), 0)
    return works(_loads(a), "the old model loads after saving failed for want of space")


def item_49() -> Answer:
    a = study()
    model = fitted(a)
    good = 0
    for _ in range(20):
        for child in [_saver(model, 3), _saver(model, 3)]:
            os.waitpid(child, 0)
        good += _loads(a)
    return works(good == 20, f"{good} of 20 times the model loads")


def item_52() -> Answer:
    if torch.cuda.is_available():
        return 0, "this machine has a GPU: not tried"
    return refused(lambda: fitted(study(), train={"accelerator": "gpu"}), "[Gg][Pp][Uu]|CUDA")


# -- D. files ------------------------------------------------------------------------------------------------------------------------


def _saved() -> tuple[anndata.AnnData, Path, bytes]:
    a = study()
    fitted(a).save("m", overwrite=True)
    return a, Path("m/model.pt"), Path("m/model.pt").read_bytes()


def item_53() -> Answer:
    a, file, data = _saved()
    texts = []
    for share in range(100):
        file.write_bytes(data[: len(data) * share // 100])
        got = refused(lambda: SCVI.load("m", adata=a), "model.pt")
        if not got[0]:
            texts.append(f"{share} %: {got[1]}")
    return works(not texts, f"every truncation is refused by the name of the file ({len(texts)} of 100 not; {texts[:1]})")


def item_54() -> Answer:
    a, file, data = _saved()
    rng, silent = np.random.default_rng(0), 0
    for at in rng.integers(0, len(data), 200):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        file.write_bytes(bytes(damaged))
        silent += _loads(a)
    return works(not silent, f"a flipped byte is refused ({silent} of 200 load silently)")


def item_55() -> Answer:
    a, file, _ = _saved()
    whole = torch.load(file, weights_only=False)
    name = next(k for k in whole["model_state_dict"] if k.endswith("weight"))
    whole["model_state_dict"][name] = whole["model_state_dict"][name][:, :-1]
    torch.save(whole, file)
    first = refused(lambda: SCVI.load("m", adata=a), re.escape(name))
    if not first[0]:
        return first
    whole["model_state_dict"][name] = torch.full_like(torch.load(file, weights_only=False)["model_state_dict"][name], float("nan"))
    a, file, _ = _saved()
    whole = torch.load(file, weights_only=False)
    whole["model_state_dict"][name][:] = float("nan")
    torch.save(whole, file)
    second = refused(lambda: SCVI.load("m", adata=a), re.escape(name))
    return second[0], f"NaN weights: {second[1]}"


class Planted:
    """A pickle that makes a file when it is read."""

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, ("planted", "w")


def item_57() -> Answer:
    a, file, _ = _saved()
    whole = torch.load(file, weights_only=False)
    whole["attr_dict"]["planted"] = Planted()
    torch.save(whole, file, pickle_module=pickle)
    got = refused(lambda: SCVI.load("m", adata=a), "")
    ran = Path("planted").exists()
    return int(got[0] and not ran), f"the planted code {'was executed' if ran else 'was not run'}; {got[1]}"


def item_58() -> Answer:
    a, file, _ = _saved()
    file.rename("elsewhere.pt")
    file.symlink_to(Path("elsewhere.pt").absolute())
    return refused(lambda: SCVI.load("m", adata=a), "link|plain file")


def item_59() -> Answer:
    a = study()
    model = fitted(a)
    model.save("m", overwrite=True, save_anndata=True)
    Path("secret").write_bytes(b"\x01" * (CELLS * 8))
    with h5py.File("m/adata.h5ad", "r+") as f:
        del f["obs/dose"]
        made = f.create_dataset("obs/dose", (CELLS,), dtype="i8", external=[("secret", 0, CELLS * 8)])
        made.attrs["encoding-type"], made.attrs["encoding-version"] = "array", "0.2.0"
    return refused(lambda: SCVI.load("m"), "dose|external")


FAULTS = {int(name[5:]): act for name, act in list(globals().items()) if re.fullmatch(r"item_\d\d", name)}
