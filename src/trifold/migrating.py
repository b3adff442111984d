"""``migrate``: rewrites a run of an earlier trifold in the format of this one. Nothing else reads earlier formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trifold import folders, store
from trifold.errors import CheckpointError, FormatError

Parts = dict[str, bytes]

# format -> what makes the files of the next one; format 2 differs from 1 in its manifest alone, which names the trifold that it needs
_STEPS: dict[int, Callable[[Parts], Parts]] = {1: dict}


def migrate(path: str | Path, out: str | Path | None = None) -> Path:
    """Rewrite a run folder of an earlier trifold in the format of this one.

    Files are compared with their hashes before; weights and answers are the same after. A kill leaves the old folder or the new one.

    Args:
        path: The run folder.
        out: Where it goes; None: in its place, and the old one is kept beside it as ``NAME.previous``.

    Returns:
        The folder that was written.

    Raises:
        FormatError: It has this format already, a newer one, or is no run folder.
        CorruptModelError: A file is missing, or its bytes are not those that were written.
        CheckpointError: ``out`` exists, or cannot be written.
    """
    path = Path(path)
    to = path if out is None else Path(out)
    if out is not None and to.exists():
        raise CheckpointError(f"{str(to)!r} exists. Choose another name, or leave it out: {str(path)!r} is then migrated in its place.")
    store.check_writable(to)
    with folders.alone(path.parent, shared=True):
        found = folders.format_of(path, what=store.WHAT)
        if found == folders.FORMAT:
            raise FormatError(f"{store.WHAT} {str(path)!r} has format {found}, which is read as it is: trifold.load({str(path)!r}).")
        parts, said = folders.read_folder(path, store.FILES, what=store.WHAT, format=found)
    weights = folders.tensors_in(parts[store.WEIGHTS], said, store.WEIGHTS)
    for step in range(found, folders.FORMAT):
        parts = _STEPS[step](parts)
    folders.write_folder(to, parts, weights, previous=store.previous_of(to), what=store.WHAT)
    return to
