"""The rules that every message of the package keeps: ``benchmarks/messages.py --check``."""

import importlib.util
import sys
from pathlib import Path

import pytest

from trifold.errors import SpecError
from trifold.schedule import Ramp
from trifold.spec import to_spec
from trifold.terms import KL, NLL, Objective

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "messages.py"


@pytest.fixture(scope="module")
def messages():
    if not SCRIPT.exists():
        pytest.skip("benchmarks are not part of this copy")
    spec = importlib.util.spec_from_file_location("trifold_messages", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_message_of_the_package_keeps_the_rules(messages):
    found = messages.found_in(messages.classes())
    terms = messages.known()
    wrong = [f"{m.file}:{m.line} {fault}: {m.text}" for m in found if m.text for fault in messages.broken(m.text, *terms)]
    assert len(found) > 400
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("one bin is needed; found 0. Pass bins=15.", "begins with 'one'"),
        ("nothing here; found 0.", "begins with 'nothing'"),
        ("bins must be at least 1; found {bins}", None),
        ("bins must be at least 1; found 0", "full stop"),
        ("Optuna is absent. Type: pip install 'trifold[sweep]'", None),
        ("Optuna is absent. Type: pip install 'trifold[swoop]'", "the extra 'swoop'"),
        ("A  gap.", "two spaces"),
        ("It holds 3 values ; needed: 4.", "before a mark"),
        ("It holds 3 values; The matrix is damaged.", "after a semicolon"),
        ("bins is set by _plain in {self._plain}.", "a private name"),
        ("It exists. Pass overwrit=True.", "overwrit="),
        ("It exists. Pass --frce to replace it.", "--frce"),
        ("It exists. Pass --force, or --to cell_type=NK.", None),
        ("A long one" + " and so on" * 50 + ".", "characters"),
    ],
)
def test_a_message_that_breaks_a_rule_is_named(messages, text, fault):
    found = messages.broken(text, {"bins", "overwrite"}, {"--force", "--to"}, {"sweep"})
    assert (fault is None and not found) or (fault is not None and len(found) == 1 and fault in found[0]), found


@pytest.mark.parametrize(
    ("component", "words"),
    [
        (Ramp(1.0, end=1.0, start=float("nan")), r"^Ramp\(start=\) needs a finite number; found nan"),
        (Objective({"nll": NLL()}, {"nll": float("inf")}), r"^Objective\(weights=\)\['nll'\] needs a finite number; found inf"),
        ({"vae": {1: 2}}, r"^A specification\['vae'\] needs keys that are text.* found the key 1"),
    ],
)
def test_a_specification_names_the_argument_that_it_cannot_hold(component, words):
    with pytest.raises(SpecError, match=words):
        to_spec(component)


def test_a_weight_without_a_term_is_named_with_the_terms_there_are():
    with pytest.raises(SpecError, match=r"none is named 'kll'\. Did you mean 'kl'\? There are: nll, kl\."):
        Objective({"nll": NLL(), "kl": KL()}, {"kll": 1.0})
    with pytest.raises(SpecError, match=r"found none\. Pass Objective"):
        Objective({})
