"""What an error says to pass is said as options of the command that was typed."""

import anndata as ad
import pytest
from cli_cases import trifold_, words

from trifold.cli.advice import typed
from trifold.cli.commands import asking, converting, training


@pytest.mark.parametrize(
    ("message", "command", "options"),
    [
        ("Add them, or pass missing='zero' to take them as zeros.", asking.latent, "--missing zero"),
        ("Use one of these, or pass unknown={'spurious': 'zero'}.", asking.latent, "--unknown spurious=zero"),
        ("If you trust it, pass trust=['mylab:Cycle'].", asking.predict, "--trust mylab:Cycle"),
        ("Pass x=<layer with counts>, fractional='allow'.", training.fit, "--x LAYER, or --set data.fractional=allow"),
        ("Choose another name, or pass overwrite=True to replace it.", converting.convert, "--force"),
        ("Pass validation=0.", training.fit, "--set fit.validation=0"),
        ("Pass lr=1e-3.", training.fit, "--lr 1e-3"),
        ("Give it, or choose likelihood='poisson'.", training.fit, "--set model.likelihood=poisson"),
        ("Pass label='cell type'.", training.fit, "--label 'cell type'"),
    ],
)
def test_an_argument_is_said_as_the_option_of_the_command(message, command, options):
    assert typed(message, command) == f" On the command line: {options}"


@pytest.mark.parametrize(
    ("message", "command"),
    [
        ("missing needs one of 'error', 'zero'; found missing='zreo'.", asking.latent),
        ("Pass kind='real' to model the values as they are.", asking.predict),
        ("Pass fractional='allow'.", training.check),
        ("Pass seed=len(seeds), or device=torch.device('cpu').", training.fit),
        ("Choose another name, or pass --force to replace it.", asking.latent),
        ("Go on with resume=True, or pass resume=False to begin anew.", training.fit),
    ],
)
def test_what_the_command_does_not_take_is_not_said(message, command):
    assert typed(message, command) == ""


def test_an_error_of_a_command_ends_with_what_to_type(data, run, tmp_path):
    ad.read_h5ad(data)[:, :40].copy().write_h5ad(tmp_path / "few.h5ad")
    result = trifold_("latent", run, tmp_path / "few.h5ad", "--out", tmp_path / "z.csv")
    assert result.exit_code == 1
    assert "pass missing='zero' to take them as zeros. On the command line: --missing zero" in words(result.stderr)
    typed_again = trifold_("latent", run, tmp_path / "few.h5ad", "--out", tmp_path / "z.csv", "--missing", "zero")
    assert typed_again.exit_code == 0
