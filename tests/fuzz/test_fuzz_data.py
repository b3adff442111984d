"""AnnData of every odd kind: it works, finite and in order, or a TrifoldError says what is wrong; the input is never changed."""

from __future__ import annotations

import os
import warnings

from harness import fingerprint, outcome
from hypothesis import HealthCheck, Phase, example, given, settings
from strategies import Case, cases
from targets import study, work

EXAMPLES = int(os.environ.get("TRIFOLD_FUZZ_EXAMPLES", "40"))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="TRIFOLD_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
@given(cases())
@example(Case(study(), "counts", {"condition": "condition"}, {"empty": "keep"}, "sound"))
def test_odd_data_work_or_are_refused_by_an_error_of_ours(case):
    what, where = outcome(lambda: work(case))
    assert not what.startswith("BUG"), f"{what}\n{case}\n{where}"


def test_the_fuzz_tests_see_a_changed_input_and_a_foreign_error():
    a = study()
    before = fingerprint(a)
    a.layers["counts"].data[0] += 1
    assert fingerprint(a) != before
    assert outcome(lambda: {}["absent"])[0] == "BUG: KeyError: "
    assert outcome(lambda: work(Case(study(), "no_such", {})))[0].startswith("SchemaError")


def test_sound_data_work_from_the_schema_to_the_latents():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=r".*(future\.infer_string|mode\.chained_assignment)")  # anndata's own, with pandas 3
        work(Case(study(), "counts", {"condition": "condition"}, {"empty": "error"}, "sound"))
