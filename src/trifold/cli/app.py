"""The command line: which commands there are, in which order, and how it begins and ends."""

from __future__ import annotations

from typing import Annotated

import typer

from trifold.cli.commands import asking, converting, looking, measuring, training
from trifold.cli.show import readable

_EPILOG = (
    "Exit codes: 0 fine; 1 an error of trifold, one block on standard error; 2 a command line that "
    "cannot be read; 130 and 143 training was stopped and can be resumed."
)

app = typer.Typer(
    name="trifold",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=_EPILOG,
    help="Flat, invariant and transferable representations of high-dimensional data. Start with: trifold demo",
)

COMMANDS = (
    training.check,
    training.fit,
    asking.latent,
    asking.classify,
    training.map_,
    measuring.profile,
    measuring.sweep,
    converting.convert,
    asking.predict,
    asking.evaluate,
    looking.curvature,
    looking.path,
    looking.show,
    looking.verify,
    looking.migrate,
    looking.cite,
    looking.demo,
)  # as the help lists them; a trailing underscore is not part of the name


def main() -> None:
    """The entry point ``trifold``."""
    app()


def _version(asked: bool) -> None:
    if asked:
        from trifold import __version__

        typer.echo(f"trifold {__version__}")
        raise typer.Exit


@app.callback()
def _top(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Version, and leave.")] = False) -> None:
    pass


for _command in COMMANDS:
    app.command(_command.__name__.rstrip("_"))(readable(_command))
