"""``trifold sweep``: ranges and tables in, a configuration that ``trifold fit`` takes out."""

from __future__ import annotations

import datetime
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import typer
from cli_cases import HELD, trifold_, words

import trifold
from trifold.cli import app
from trifold.cli.config import checked, read_config
from trifold.cli.sweeping import _write, toml_of
from trifold.model import Model
from trifold.sweeps import Sweep

pytest.importorskip("optuna")

TEXT = """
[data]
condition = "condition"
genes = 20
[model]
hidden = [8]
latent = 3
[fit]
epochs = 2
device = "cpu"
patience = "none"
out = "elsewhere"
[fit.hold_out]
condition = "drug"
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "run.toml"
    path.write_text(TEXT)
    return path


def sweep(config, data, out, *more):
    return trifold_("sweep", config, data, "--out", out, "--hold-out", "condition=drug", "--hold-out", "cell_type=type_1", *more)


SPACE = ("--space", "latent=2..6", "--space", "lr=1e-4..1e-2:log", "--space", "hidden=[8]|[12, 8]")


def test_the_best_configuration_is_one_that_fit_takes_and_gives_the_score_again(config, data, tmp_path):
    out = tmp_path / "best"
    result = sweep(config, data, out, *SPACE, "--trials", 2)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == ["best.toml", "study.json", "trials.csv"]
    trials = pd.read_csv(out / "trials.csv")
    assert list(trials["state"]) == ["finished", "finished"]
    best = trials.loc[trials["value"].idxmin()]
    tables = read_config(out / "best.toml")
    assert tables["data"] == {"condition": "condition", "genes": 20}
    assert tables["model"] == {"latent": best["model.latent"], "hidden": json.loads(best["model.hidden"])}
    assert tables["fit"]["lr"] == pytest.approx(best["fit.lr"])
    assert tables["fit"]["hold_out"] == {column: [value] for column, value in HELD.items()}
    shown = words(result.stdout)
    assert f"trial 1 finished: {trials['value'][1]:.4f} after 2 epochs" in shown
    assert "The best of 2 trials (2 finished) by elbo" in shown
    assert f"trifold fit {data} --config {out / 'best.toml'} --out" in shown
    again = trifold_("fit", data, "--config", out / "best.toml", "--out", tmp_path / "run", "--quiet")
    assert again.exit_code == 0, again.output
    row = trifold.load(tmp_path / "run").history.rows[-1]
    assert row["validation/nll"] + row["validation/kl"] == pytest.approx(best["value"], rel=1e-9)


def test_refit_trains_the_best_and_a_second_worker_goes_on_with_the_study(config, data, tmp_path):
    kept = ("--space", "latent=2..6", "--storage", f"sqlite:///{tmp_path / 'study.db'}", "--study", "first", "--refit", "--quiet")
    for trials in (1, 2):
        result = sweep(config, data, tmp_path / "best", *kept, "--trials", trials)
        assert result.exit_code == 0, result.output
        assert len(pd.read_csv(tmp_path / "best" / "trials.csv")) == trials
        latent = tomllib.loads((tmp_path / "best" / "best.toml").read_text())["model"]["latent"]
        model = trifold.load(tmp_path / "best" / "run")
        assert model.vae.posterior.latent == latent
        assert model.card["hold_out"] == HELD
    result = sweep(config, data, tmp_path / "best", *kept, "--trials", 2, "--metric", "nll")
    assert result.exit_code == 1
    assert "agree in metric" in words(result.stderr)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--space", "latent"], "--space needs name=range; found 'latent'"),
        (["--space", "latent=2..6", "--space", "latent=2..7"], "--space names 'latent' twice"),
        (["--space", "latent=2..6.5"], "[model] latent needs a whole number or none; found 6.5"),
        (["--space", "batch=none|32"], "[fit] batch needs a whole number; found 'none'"),
        (["--space", "latnet=2..6"], "Did you mean 'latent'?"),
        (["--space", "data.genes=10..20"], "the same cells and genes"),
        (["--space", "latent=2..6", "--set", "fit.validation=0"], "cells to watch"),
        (["--space", "latent=2..6", "--set", "model.latnet=3"], "Did you mean 'latent'?"),
        (["--space", "latent=2..6", "--study", "x"], "go together"),
    ],
)
def test_a_wrong_space_or_setting_stops_before_the_first_trial(config, data, tmp_path, more, said):
    result = sweep(config, data, tmp_path / "best", *more)
    assert result.exit_code == 1
    assert said in words(result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_the_studys_is_kept_unless_forced(config, data, tmp_path):
    (tmp_path / "best.toml").write_text("mine")
    result = sweep(config, data, tmp_path, "--space", "latent=2..6", "--trials", 1)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert (tmp_path / "best.toml").read_text() == "mine"


def test_sigterm_ends_with_code_143_and_the_trial_is_run_by_the_next(config, data, tmp_path, monkeypatch):
    kept = ("--space", "latent=2..6", "--storage", f"sqlite:///{tmp_path / 'study.db'}", "--study", "first", "--trials", 1)
    handler = signal.getsignal(signal.SIGTERM)

    @functools.wraps(Model.fit)
    def stopped(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "fit", stopped)
        assert sweep(config, data, tmp_path / "best", *kept).exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "best").exists()
    assert sweep(config, data, tmp_path / "best", *kept).exit_code == 0
    assert list(pd.read_csv(tmp_path / "best" / "trials.csv")["state"]) == ["failed", "finished"]


def test_tables_survive_toml(tmp_path):
    nasty = 'a "b" \\ \n\t é 😀 \x7f\x01'
    tables = {
        "data": {"x": None, "condition": [nasty, "b"], "own key.": 1},
        "model": {"hidden": (128, 64), "published": True, "kl": 1e-6, "latent": 3},
        "fit": {"hold_out": {"cell type": nasty, "dose": [1, 2.5, False], "day": datetime.date(2024, 2, 1)}, "lr": 1e-05},
    }
    found = tomllib.loads(toml_of(tables))
    assert found["model"].pop("hidden") == [128, 64]
    assert found["data"].pop("x") == "none"
    assert found == {
        "data": {k: v for k, v in tables["data"].items() if k != "x"},
        "model": {k: v for k, v in tables["model"].items() if k != "hidden"},
        "fit": tables["fit"],
    }
    (tmp_path / "t.toml").write_text(toml_of({"fit": {"patience": None}}), encoding="utf-8")
    assert checked(read_config(tmp_path / "t.toml"))["fit"]["patience"] is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_two_workers_share_one_study(config, data, tmp_path, kind):
    storage = f"sqlite:///{tmp_path / 'study.db'}" if kind == "sqlite" else f"journal://{tmp_path / 'study.log'}"
    line = [sys.executable, "-c", "from trifold.cli import main; main()", "sweep", config, data, "--out", tmp_path / "best"]
    line += ["--space", "lr=1e-4..1e-2:log", "--storage", storage, "--study", "first", "--trials", 6, "--quiet"]
    workers = [subprocess.Popen([str(part) for part in line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    trials = pd.read_csv(tmp_path / "best" / "trials.csv")
    assert 6 <= len(trials) <= 7
    assert trials["fit.lr"].is_unique
    assert set(trials["state"]) <= {"finished", "pruned"}


PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"


def test_the_options_on_the_page_about_clusters_exist():
    text = re.sub(r"\\\n\s*", "", PAGE.read_text())
    commands = dict.fromkeys(re.findall(r"^(?:srun )?trifold (profile|sweep) .*$", text, re.MULTILINE))
    assert list(commands) == ["profile", "sweep"]
    for name in commands:
        known = {option for p in typer.main.get_command(app).commands[name].params for option in p.opts}
        for line in re.findall(rf"^(?:srun )?trifold {name} (.*)$", text, re.MULTILINE):
            assert set(re.findall(r"(?<= )--[a-z-]+", line)) <= known, line


def test_the_costs_on_the_page_about_clusters_follow_from_its_formula():
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) P \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 4
    for speed, hours, price in rows:
        assert hours == price
        assert float(hours) == pytest.approx(1e9 / 3600 / float(speed.replace(",", "")), rel=0.01)


def test_what_a_worker_knew_earlier_does_not_replace_what_another_knew_later(tmp_path):
    """Of two workers that end at one moment, either may write last."""

    def best(number: int, *states: str) -> Sweep:
        trials = pd.DataFrame({"number": range(len(states)), "state": states})
        return Sweep(metric="elbo", value=1.0, number=number, model={}, fit={}, trials=trials)

    def there() -> tuple[list[str], str]:
        return list(pd.read_csv(tmp_path / "best" / "trials.csv")["state"]), (tmp_path / "best" / "best.toml").read_text().splitlines()[0]

    tables = {"data": {}, "model": {}, "fit": {}}
    late, early = best(1, "finished", "finished"), best(0, "finished", "running")
    for found, known in ((early, early), (late, late), (early, late), (late, late)):
        _write(tmp_path / "best", found, tables, "first")
        assert there() == (list(known.trials["state"]), f"# Trial {known.number}: elbo 1, on cells that it did not train on.")
    _write(tmp_path / "best", early, tables, "second")  # of another study, with --force
    assert there()[0] == ["finished", "running"]
