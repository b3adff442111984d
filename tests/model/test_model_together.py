"""Several processes train one model: what one process gives, to rounding, for every kind of term."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

import trifold
from trifold.errors import DeviceError, Interrupted, SpecError, TrainingError
from trifold.share import ALONE, Share, spread
from trifold.terms import KL, NLL, Objective, Term
from trifold.train import together

OPTIONS = {"epochs": 2, "batch": 32, "progress": False, "device": "cpu"}


def curves(model) -> np.ndarray:
    rows = [{k: v for k, v in row.items() if k.startswith(("train/", "validation/"))} for row in model.history.rows]
    return np.array([list(row.values()) for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trvae", "gamma_vae", "invae", "invae energy"])
def test_two_processes_give_the_loss_curve_of_one_and_the_same_weights(name, study):
    roles = {"spurious": "condition", "invariant": "cell_type"} if name.startswith("invae") else {"condition": "condition"}
    schema = trifold.Schema.of(study.adata, **roles)

    def build():
        if name == "invae energy":
            return trifold.invae(schema, invariant=3, spurious=2, hidden=(8,), prior="energy", label_dropout=0.3)
        made = {"trvae": trifold.trvae, "gamma_vae": trifold.gamma_vae, "invae": trifold.invae}[name]
        return made(schema, hidden=(8,))

    one = build().fit(study.adata, validation=0.2, patience=3, **OPTIONS)
    two = build().fit(study.adata, validation=0.2, patience=3, devices=2, **OPTIONS)
    assert curves(one).shape == curves(two).shape
    np.testing.assert_allclose(curves(two), curves(one), rtol=1e-4, atol=1e-4)
    for key, tensor in one.vae.state_dict().items():
        torch.testing.assert_close(two.vae.state_dict()[key], tensor, rtol=2e-3, atol=2e-3, msg=key)
    np.testing.assert_allclose(two.latent(study.adata), one.latent(study.adata), atol=5e-3)


@pytest.mark.slow
def test_two_processes_read_their_own_blocks_of_a_file_and_write_one_run(study, tmp_path):
    study.adata.write_h5ad(tmp_path / "a.h5ad")
    schema = trifold.Schema.of(tmp_path / "a.h5ad", condition="condition")
    model = trifold.trvae(schema, latent=3, hidden=(8,)).fit(tmp_path / "a.h5ad", devices=2, out=tmp_path / "run", **OPTIONS)
    assert {p.name for p in tmp_path.iterdir()} == {"a.h5ad", "run"}
    assert (trifold.load(tmp_path / "run").latent(study.adata) == model.latent(study.adata)).all()


@pytest.mark.slow
def test_sigterm_to_the_group_writes_one_checkpoint_from_which_the_group_goes_on(study, schema, tmp_path):
    options = {**OPTIONS, "epochs": 60, "devices": 2, "out": tmp_path / "run"}
    whole = trifold.trvae(schema, latent=3, hidden=(8,)).fit(study.adata, **{**options, "out": tmp_path / "whole"})

    def end() -> None:
        while not list(tmp_path.glob("run.checkpoint/step-*")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=end)
    killer.start()
    with pytest.raises(Interrupted, match="resume=True"):
        trifold.trvae(schema, latent=3, hidden=(8,)).fit(study.adata, checkpoint_every=5, **options)
    killer.join()
    again = trifold.trvae(schema, latent=3, hidden=(8,)).fit(study.adata, resume=True, **options)
    assert all(torch.equal(a, b) for a, b in zip(again.network.state_dict().values(), whole.network.state_dict().values(), strict=True))


class Breaks(Term):
    """NaN."""

    def forward(self, p):
        return p.z.sum(1) * float("nan")


@pytest.mark.slow
def test_what_a_process_raises_is_raised_here_with_its_step_and_term(study, schema):
    model = trifold.trvae(schema, latent=3, hidden=(8,))
    model.objective = Objective({"nll": NLL(), "kl": KL(), "breaks": Breaks()})
    with pytest.raises(TrainingError, match="breaks") as caught:
        model.fit(study.adata, devices=2, **OPTIONS)
    assert (caught.value.step, caught.value.term) == (0, "breaks")


def leave(code: int) -> None:
    os._exit(code)


@pytest.mark.slow
def test_a_process_that_ends_without_a_word_is_said_with_what_to_type():
    with pytest.raises(DeviceError, match=r"exit codes: \[.*3.*\].*__main__.*torchrun"):
        together(leave, 3, processes=2)


def test_what_several_processes_cannot_do_is_refused(study, schema):
    model = trifold.trvae(schema, latent=3, hidden=(8,))
    with pytest.raises(DeviceError, match="num_nodes=2 needs processes that torchrun or SLURM began"):
        model.fit(study.adata, num_nodes=2, **OPTIONS)
    with pytest.raises(SpecError, match="on_epoch"):
        model.fit(study.adata, devices=2, on_epoch=print, **OPTIONS)


def test_shares_are_the_rows_of_the_whole_and_alone_changes_nothing():
    x = torch.arange(12.0).view(6, 2)
    assert ALONE.own(x) is x
    assert ALONE.gather(x) is x
    assert torch.equal(torch.cat([Share(rank, 3).own(x) for rank in range(3)]), x)
    assert Share(1, 3).whole(2) == 6


def test_every_share_sees_the_noise_of_its_own_rows_of_one_draw(study, schema):
    model = trifold.trvae(schema, latent=3, hidden=(8,), seed=1)
    model.vae.train()
    cells = trifold.data.Cells(study.adata, schema)
    found = []
    for share, at in ((ALONE, range(8)), (Share(0, 2), range(4)), (Share(1, 2), range(4, 8))):
        spread(model.vae, share)
        torch.manual_seed(0)
        found.append(model.vae(cells.batch(np.array(at))))
    spread(model.vae, ALONE)
    for name in ("z", "h"):
        torch.testing.assert_close(torch.cat([getattr(p, name) for p in found[1:]]), getattr(found[0], name))
