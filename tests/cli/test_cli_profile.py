"""``trifold profile``: a run or a configuration, as tables or as JSON."""

from __future__ import annotations

import json

import pytest
from cli_cases import trifold_, words


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "run.toml"
    path.write_text('[data]\ncondition = "condition"\ngenes = 50\n[model]\nhidden = [16]\n[fit]\nbatch = 64\ndevice = "cpu"\n')
    return path


def test_a_configuration_is_profiled_with_its_genes_and_batch(config, data):
    result = trifold_("profile", config, data, "--steps", 3, "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    facts = found["facts"]
    assert (facts["genes"], facts["batch"], facts["threads"], facts["device"], facts["preset"]) == (50, 64, 1, "cpu", "trvae")
    kinds = [row["kind"] for row in found["rows"]]
    assert kinds.count("step") == kinds.count("bound") == 1
    assert kinds.count("forward") == kinds.count("backward") > 3
    step = next(row["ms"] for row in found["rows"] if row["kind"] == "step")
    assert facts["cells_per_second"] == pytest.approx(64e3 / step)


def test_a_run_is_profiled_and_its_parts_are_printed(run, data):
    result = trifold_("profile", run, data, "--steps", 2, "--batch", 32, "--device", "cpu")
    assert result.exit_code == 0, result.output
    shown = words(result.stdout)
    for name in (
        "reading",
        "encoder",
        "likelihood",
        "mmd",
        "backward",
        "optimiser",
        "posterior.network.first",
        "A step of trvae, 32 cells",
    ):
        assert name in shown
    assert "100.0 %" in shown
    assert "% of that bound is reached" in shown
    assert "operators per step" in shown


def test_settings_change_a_configuration_and_not_a_run(config, run, data):
    result = trifold_("profile", config, data, "--steps", 2, "--set", "fit.batch=16", "--json")
    assert json.loads(result.stdout)["facts"]["batch"] == 16
    result = trifold_("profile", run, data, "--set", "fit.batch=16")
    assert result.exit_code == 1
    assert "is a run. Leave --set out" in words(result.stderr)


def test_a_wrong_key_of_the_configuration_stops_by_name(config, data, tmp_path):
    (tmp_path / "wrong.toml").write_text(config.read_text().replace("hidden", "hiden"))
    result = trifold_("profile", tmp_path / "wrong.toml", data)
    assert result.exit_code == 1
    assert "Did you mean 'hidden'?" in result.stderr
