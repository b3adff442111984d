"""Run folders: every damaged, foreign or planted file is refused by name; a failed write leaves the old run and no litter."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

import trifold
from trifold import folders, store
from trifold.errors import CheckpointError, CorruptModelError, FormatError, NotFittedError, TrifoldError

EVERY = (*store.FILES, store.MANIFEST)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory) -> Path:
    return trained.save(tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def run(saved, tmp_path) -> Path:
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


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


# -- damage -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_item_53_every_truncation_is_refused_by_the_name_of_the_file(run, name):
    whole = (run / name).read_bytes()
    for share in range(0, 100, 5):
        (run / name).write_bytes(whole[: len(whole) * share // 100])
        with pytest.raises(CorruptModelError, match=name.replace(".", r"\.")):
            store.read_run(run)
    (run / name).write_bytes(whole + b"\n")
    if name != store.MANIFEST:  # where blank space at the end means nothing
        with pytest.raises(CorruptModelError, match=name):
            store.read_run(run)
    (run / name).unlink()
    with pytest.raises(CorruptModelError, match=name):
        store.read_run(run)


@pytest.mark.parametrize("name", store.FILES)
def test_item_54_one_flipped_byte_anywhere_is_refused_by_the_name_of_the_file(run, name):
    whole, rng = (run / name).read_bytes(), np.random.default_rng(0)
    for at in rng.choice(len(whole), size=min(60, len(whole)), replace=False):
        broken = bytearray(whole)
        broken[at] ^= 1 << int(rng.integers(8))
        (run / name).write_bytes(bytes(broken))
        with pytest.raises(CorruptModelError, match=name):
            store.read_run(run)


def test_item_54_one_flipped_bit_anywhere_in_the_manifest_is_refused(run):
    whole, rng = (run / store.MANIFEST).read_bytes(), np.random.default_rng(0)
    for at in rng.choice(len(whole), size=300):
        broken = bytearray(whole)
        broken[at] ^= 1 << int(rng.integers(8))
        (run / store.MANIFEST).write_bytes(bytes(broken))
        with pytest.raises(FormatError):
            store.read_run(run)


# -- weights ------------------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", ["missing", "extra", "shape", "dtype", "nan", "inf"])
def test_item_55_weights_that_do_not_fit_are_refused_by_name(run, kind):
    weights = state_of(run)
    name = spoil(kind, weights)
    put_weights(run, weights)
    with pytest.raises(FormatError, match=name):
        trifold.load(run)


def test_weights_that_disagree_with_the_manifest_are_refused(run):
    edit(run, store.MANIFEST, lambda m: m["tensors"].popitem() and None)
    with pytest.raises(CorruptModelError, match="disagree"):
        trifold.load(run)


# -- form ---------------------------------------------------------------------------------------------------------------------------


def test_item_56_unknown_keys_are_refused_by_name(run):
    for name, change in {
        store.MANIFEST: lambda m: m.update(planted=1),
        "spec.json": lambda s: s.update(planted=1),
        "schema.json": lambda s: s.update(planted=1),
    }.items():
        copy = run.with_name(f"copy_of_{name}")
        shutil.copytree(run, copy)
        edit(copy, name, change)
        with pytest.raises(FormatError, match="planted"):
            trifold.load(copy)


def test_item_56_an_unknown_argument_of_a_component_is_refused_by_name(run):
    edit(run, "spec.json", lambda s: s["plan"].update(epoch=3))
    with pytest.raises(FormatError, match=r"'epoch'.*Did you mean 'epochs'"):
        trifold.load(run)


@pytest.mark.parametrize("name", ["card.json", "schema.json", "spec.json", store.MANIFEST])
def test_item_56_a_repeated_key_is_refused(run, name):
    text = (run / name).read_text()
    twice = text.replace("{", '{"planted": 1, "planted": 2, ', 1).encode()
    if name == store.MANIFEST:
        (run / name).write_bytes(twice)
    else:
        rewrite(run, name, twice)
    with pytest.raises(FormatError, match=r"repeats the key 'planted'"):
        trifold.load(run)


@pytest.mark.parametrize("value", [2, 10**9])
def test_item_56_a_newer_format_says_that_it_needs_a_newer_trifold(run, value):
    edit(run, store.MANIFEST, lambda m: m.update(format=value))
    with pytest.raises(FormatError, match="newer trifold"):
        trifold.load(run)


@pytest.mark.parametrize("value", [0, -1, True, "1", 1.0, None])
def test_a_format_that_never_was_is_refused(run, value):
    edit(run, store.MANIFEST, lambda m: m.update(format=value))
    with pytest.raises(FormatError, match="format"):
        trifold.load(run)


@pytest.mark.parametrize("text", ["NaN", "[1, 2", "", "\xff", '{"a": Infinity}', "[" * 100_000, "null", "[]", '"text"', "7"])
@pytest.mark.parametrize("name", ["card.json", "schema.json", "spec.json"])
def test_item_56_json_of_another_kind_is_refused(run, name, text):
    rewrite(run, name, text.encode("latin-1"))
    with pytest.raises(FormatError):
        trifold.load(run)


def test_deep_nesting_is_refused(run):
    deep: object = 1
    for _ in range(900):
        deep = [deep]
    data = json.loads((run / "spec.json").read_text())
    data["vae"]["prior"]["latent"] = deep
    rewrite(run, "spec.json", json.dumps(data).encode())
    with pytest.raises(FormatError):
        trifold.load(run)


def test_history_that_is_not_text_or_not_numbers_is_refused(run):
    for data in (b"\xff\xfe", b"epoch\nmany\n", b"epoch\n1,2,3\n"):
        rewrite(run, "history.csv", data)
        with pytest.raises(FormatError, match=r"history\.csv"):
            trifold.load(run)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("vae", {"class": "trifold.schedule:Ramp", "value": 1.0}),
        ("vae", None),
        ("objective", {"class": "trifold.train.plan:Plan"}),
        ("plan", "quick"),
        ("preset", ["trvae"]),
        ("vae", {"class": "trifold.model:Model"}),
        ("vae", {"class": "trifold.spec:Component"}),
    ],
)
def test_a_wrong_class_in_a_place_is_refused(run, part, value):
    edit(run, "spec.json", lambda s: s.update({part: value}))
    with pytest.raises(FormatError, match=r"Model|Component|vae|objective|plan|preset"):
        trifold.load(run)


@pytest.mark.parametrize("part", ["posterior", "prior", "decoder", "likelihood"])
def test_a_component_in_the_wrong_place_inside_another_is_refused_by_the_place(run, part):
    for wrong in ({"class": "trifold.schedule:Ramp", "value": 1.0}, "text", None):
        edit(run, "spec.json", lambda s, wrong=wrong: s["vae"].update({part: wrong}))
        with pytest.raises(TrifoldError, match=part):
            trifold.load(run)


def test_an_objective_of_other_things_than_terms_is_refused(run):
    edit(run, "spec.json", lambda s: s["objective"]["terms"].update(kl={"class": "trifold.schedule:Ramp", "value": 1.0}))
    with pytest.raises(TrifoldError, match="'kl' is a Ramp"):
        trifold.load(run)


# -- planted things ------------------------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", [*EVERY])
@pytest.mark.parametrize("consistent", [False, True])
def test_item_57_a_pickle_in_the_place_of_a_file_is_refused_and_nothing_of_it_is_run(run, tmp_path, name, consistent):
    exploded = tmp_path / "exploded"
    data = pickle.dumps(Bomb(exploded))
    if consistent and name != store.MANIFEST:
        rewrite(run, name, data)
    else:
        (run / name).write_bytes(data)
    with pytest.raises(FormatError):
        trifold.load(run)
    assert not exploded.exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.pkl", "model.pt", "card.pkl", "data.pkl"])
def test_item_57_a_pickle_beside_the_files_is_never_run(run, trained, study, tmp_path, name):
    exploded = tmp_path / "exploded"
    (run / name).write_bytes(pickle.dumps(Bomb(exploded)))
    torch.save({"w": torch.zeros(1)}, run / f"also_{name}")
    assert np.array_equal(trifold.load(run).latent(study.adata), trained.latent(study.adata))
    assert not exploded.exists()


@pytest.mark.parametrize("name", EVERY)
def test_item_58_links_folders_and_devices_in_the_place_of_a_file_are_refused_by_name(run, tmp_path, name):
    target = tmp_path / "elsewhere"
    shutil.copy(run / name, target)
    (run / name).unlink()
    (run / name).symlink_to(target)
    with pytest.raises(FormatError, match=name):
        trifold.load(run)
    (run / name).unlink()
    (run / name).mkdir()
    with pytest.raises(FormatError, match=name):
        trifold.load(run)
    (run / name).rmdir()
    os.mkfifo(run / name)
    with pytest.raises(FormatError, match=name):
        trifold.load(run)


@pytest.mark.parametrize("name", ["../../card.json", "/etc/passwd", "card.json/../x"])
def test_item_58_a_manifest_cannot_name_other_files(run, name):
    edit(run, store.MANIFEST, lambda m: m["files"].update({name: {"size": 1, "sha256": "0"}}))
    with pytest.raises(FormatError, match="files"):
        trifold.load(run)


@pytest.mark.parametrize("said", [None, {}, {"size": "1", "sha256": "0"}, {"size": -5, "sha256": "0"}, {"size": 1}])
def test_a_manifest_that_says_nothing_of_a_file_is_refused(run, said):
    edit(run, store.MANIFEST, lambda m: m["files"].update({"card.json": said}))
    with pytest.raises(FormatError, match=r"card\.json"):
        trifold.load(run)


def test_something_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file", tmp_path / "absent", tmp_path / "folder"):
        with pytest.raises(FormatError, match=path.name):
            trifold.load(path)


# -- writing -------------------------------------------------------------------------------------------------------------------------


def names_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_writing_over_something_else_is_refused_and_leaves_it_alone(trained, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "note").write_text("x")
    for name in ("thesis", "note"):
        with pytest.raises(CheckpointError, match=name):
            trained.save(tmp_path / name)
    (tmp_path / "run.previous").mkdir()
    (tmp_path / "run.previous" / "chapter.txt").write_text("more work")
    with pytest.raises(CheckpointError, match=r"run\.previous"):
        trained.save(tmp_path / "run")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    assert (tmp_path / "run.previous" / "chapter.txt").read_text() == "more work"
    assert names_in(tmp_path) == {"thesis", "note", "run.previous"}


def test_fit_says_before_training_that_its_folder_cannot_be_written(trained, study, tmp_path):
    (tmp_path / "file").write_text("x")
    fresh = trifold.trvae(trained.schema, latent=2, hidden=(4,))
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CheckpointError, match="file"):
            fresh.fit(study.adata, epochs=10_000, out=out, progress=False)
    assert fresh.card == {}


def test_an_earlier_run_is_kept_beside_the_new_one_and_read_when_a_kill_left_only_it(trained, schema, study, tmp_path):
    first = trained.save(tmp_path / "run")
    other = trifold.trvae(schema, latent=2, hidden=(4,), seed=1)
    other.save(first)
    assert names_in(tmp_path) == {"run", "run.previous"}
    assert trifold.load(first).vae.prior.latent == 2
    assert np.array_equal(trifold.load(tmp_path / "run.previous").latent(study.adata), trained.latent(study.adata))
    shutil.rmtree(first)
    assert np.array_equal(trifold.load(first).latent(study.adata), trained.latent(study.adata))
    other.save(first)
    other.save(first)
    assert names_in(tmp_path) == {"run", "run.previous"}
    assert trifold.load(tmp_path / "run.previous").vae.prior.latent == 2


def test_an_empty_folder_in_the_way_does_not_cost_the_previous_run(trained, tmp_path):
    path = trained.save(tmp_path / "run")
    path.rename(tmp_path / "run.previous")
    path.mkdir()
    trained.save(path)
    assert names_in(tmp_path) == {"run", "run.previous"}
    trifold.load(tmp_path / "run.previous")


@pytest.mark.parametrize("moment", [*EVERY, "rename", "fsync"])
def test_item_47_a_full_disk_leaves_the_old_run_loadable_and_no_litter(trained, schema, study, tmp_path, monkeypatch, moment):
    path = trained.save(tmp_path / "run")
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(file: Path, data: bytes, usual=folders._write_synced) -> None:
        if file.name == moment:
            file.write_bytes(data[: len(data) // 2])
            raise full
        usual(file, data)

    def fail(*args: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_write_synced", write)
        if moment == "rename":
            usual = os.rename
            patch.setattr(os, "rename", lambda a, b: fail() if str(a).endswith(".part") else usual(a, b))
        if moment == "fsync":
            patch.setattr(folders, "_sync_folder", fail)
        with pytest.raises(CheckpointError, match=r"disk is full.*needs [\d,]+ bytes, and [\d,]+ are free") as caught:
            trifold.trvae(schema, latent=2, hidden=(4,)).save(path)
    assert "'" + str(path) + "'" in str(caught.value)
    assert names_in(tmp_path) == {"run"}
    assert names_in(path) == set(EVERY)
    assert np.array_equal(trifold.load(path).latent(study.adata), trained.latent(study.adata))


def test_an_interrupted_write_leaves_no_litter(trained, tmp_path, monkeypatch):
    def interrupt(file: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    path = trained.save(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(folders, "_write_synced", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained.save(path)
    assert names_in(tmp_path) == {"run"}
    trifold.load(path)


def test_the_same_model_is_saved_to_the_same_bytes(trained, tmp_path):
    first, second = trained.save(tmp_path / "a"), trained.save(tmp_path / "b")
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in EVERY)
    assert names_in(first) == set(EVERY)


def test_the_card_holds_versions_seed_what_was_held_out_and_the_datas_fingerprint(saved, study):
    card = json.loads((saved / "card.json").read_text())
    assert {"python", "torch", "numpy"} <= set(card["versions"])
    assert card["seed"] == 5
    assert card["hold_out"] == {"condition": "stimulated", "cell_type": "type_1"}
    obs = study.adata.obs
    held = int(((obs["condition"] == "stimulated") & (obs["cell_type"] == "type_1")).sum())
    assert card["cells"]["held_out"] == held
    assert sum(card["cells"].values()) == study.adata.n_obs
    assert len(card["data"]) == 64
    assert card["plan"]["epochs"] == 2
    assert card["preset"] == "trvae"
    assert ["stimulated", "type_1"] not in card["seen"]["values"]
    assert ["stimulated", "type_0"] in card["seen"]["values"]


def test_a_model_saved_untrained_is_untrained_when_loaded_and_can_be_trained(schema, study, tmp_path):
    path = trifold.trvae(schema, latent=2, hidden=(4,)).save(tmp_path / "run")
    again, twin = trifold.load(path), trifold.trvae(schema, latent=2, hidden=(4,))
    with pytest.raises(NotFittedError, match="predict"):
        again.predict(study.adata, {"condition": "stimulated"})
    for model in (again, twin):
        model.fit(study.adata, epochs=1, batch=64, device="cpu", progress=False)
    assert np.array_equal(again.latent(study.adata), twin.latent(study.adata))
