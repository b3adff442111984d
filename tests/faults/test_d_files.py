"""Reliability items 53 to 58: damaged, foreign and planted files of a run folder are refused by name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from file_cases import EVERY, edit, flip, put_weights, rewrite, spoil, state_of

import trifold
from trifold import store
from trifold.errors import CorruptModelError, FormatError, TrifoldError
from trifold.loading import verify

# -- damage -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_item_53_every_truncation_is_refused_by_the_name_of_the_file(run, name):
    whole = (run / name).read_bytes()
    for share in range(100):
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


def test_item_54_one_flipped_bit_anywhere_is_refused(run):
    flip(run, EVERY, 500, store.read_run)


@pytest.mark.slow
def test_item_54_ten_thousand_flipped_bits_are_refused(run):
    flip(run, EVERY, 10_000, store.read_run, seed=1)


# -- weights ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "extra", "shape", "dtype", "nan", "inf"])
def test_item_55_weights_that_do_not_fit_are_refused_by_name(run, kind):
    weights = state_of(run)
    name = spoil(kind, weights)
    put_weights(run, weights)
    with pytest.raises(FormatError, match=name):
        trifold.load(run)


def test_item_55_weights_of_another_architecture_are_refused_by_name(run, study, tmp_path):
    other = trifold.gamma_vae(trifold.Schema.of(study.adata), latent=3, hidden=(8,)).save(tmp_path / "other")
    put_weights(run, state_of(other))
    with pytest.raises(FormatError, match=r"do not fit the saved specification: they lack vae\."):
        trifold.load(run)
    assert sum("do not fit" in fault for fault in verify(run)) >= 2


def test_item_55_what_does_not_fit_is_refused_before_memory_is_taken_for_it(run):
    edit(run, "spec.json", lambda s: s["vae"]["decoder"]["network"].update(hidden=[10**12]))
    with pytest.raises(FormatError, match=r"another shape or dtype: vae\.decoder.*1000000000000"):
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


@pytest.mark.parametrize("value", [3, 10**9])
def test_item_56_a_newer_format_says_which_trifold_it_needs(run, value):
    edit(run, store.MANIFEST, lambda m: m.update(format=value, needs="7.2", unknown=[]))
    with pytest.raises(FormatError, match=r"It needs trifold >= 7\.2\. Type: pip install -U 'trifold>=7\.2'$"):
        trifold.load(run)


@pytest.mark.parametrize("needs", [None, 7, "7; rm -rf", "latest", ["7.2"], "7" * 5000 + "x"])
def test_item_56_a_newer_format_that_does_not_say_so_needs_a_later_version(run, needs):
    edit(run, store.MANIFEST, lambda m: m.update(format=3, needs=needs))
    with pytest.raises(FormatError, match=r"It needs trifold of a later version\. Type: pip install -U 'trifold'$"):
        trifold.load(run)


@pytest.mark.parametrize("value", [0, -1, True, "1", 1.0, None])
def test_a_format_that_never_was_is_refused(run, value):
    edit(run, store.MANIFEST, lambda m: m.update(format=value))
    with pytest.raises(FormatError, match="format"):
        trifold.load(run)


@pytest.mark.parametrize(
    "text", ["NaN", "1e999", "1" * 5000, "[1, 2", "", "\xff", '{"a": Infinity}', "[" * 100_000, "null", "[]", '"text"', "7"]
)
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


@pytest.mark.parametrize("name", store.FILES)
def test_item_60_a_manifest_that_promises_a_terabyte_takes_no_memory(run, name):
    edit(run, store.MANIFEST, lambda m: m["files"][name].update(size=10**12))
    with pytest.raises(FormatError, match=name):
        trifold.load(run)


def test_item_60_a_description_of_millions_of_empty_lists_is_refused_before_it_is_read(run):
    rewrite(run, "card.json", b"[" + b"[]," * 1_100_000 + b"[]]")
    with pytest.raises(FormatError, match=r"card\.json must be at most"):
        trifold.load(run)


def test_something_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file", tmp_path / "absent", tmp_path / "folder"):
        with pytest.raises(FormatError, match=path.name):
            trifold.load(path)
