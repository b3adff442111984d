"""Checkpoints: everything that training needs to go on bit for bit, written whole or not at all, the last two kept."""

from __future__ import annotations

import shutil
import time
import warnings
from pathlib import Path
from typing import Any

from trifold.errors import CheckpointError, CorruptModelError, FormatError, TrifoldWarning
from trifold.folders import dump, faults, parse, read_folder, sweep, tensors_in, write_folder
from trifold.train.state import State

_TENSORS, _FACTS = "state.safetensors", "state.json"
_WHAT = "The checkpoint"
_KEPT = 2


class Checkpoints:
    """Checkpoints of one run, in ``step-NUMBER`` folders, each verified when read.

    Args:
        folder: Where they are: ``NAME.checkpoint`` beside the run folder NAME.
        every: Steps between two of them; None: not by steps.
        minutes: Minutes between two of them; None: not by time.
        about: Plain facts of the run that must be the same when it goes on: data, plan, seed.
        write: Whether this process writes; of several, one does.

    Raises:
        CheckpointError: A number out of its range.
    """

    def __init__(self, folder: Path, *, every: int | None, minutes: float | None, about: dict[str, Any], write: bool = True):
        if every is not None and every < 1:
            raise CheckpointError(
                f"checkpoint_every needs a number of steps >= 1, or None; found {every}. Leave it out for checkpoints by time only."
            )
        if minutes is not None and not minutes > 0:
            raise CheckpointError(f"checkpoint_minutes needs a number above 0, or None; found {minutes}. Leave it out for 10.")
        self.folder = folder
        self.every = every
        self.minutes = minutes
        self.about = about
        self._writes = write
        self._last = time.monotonic()

    @property
    def there(self) -> bool:
        """Whether there is one to go on from."""
        return bool(self._found())

    def due(self, done: int) -> bool:
        """Whether one is to be written after so many steps."""
        by_step = self.every is not None and done % self.every == 0
        return by_step or (self.minutes is not None and time.monotonic() - self._last >= 60 * self.minutes)

    def write(self, state: State) -> None:
        """Write one, and drop the oldest.

        Raises:
            CheckpointError: It cannot be written; earlier ones are untouched.
        """
        from safetensors.torch import save

        self._last = time.monotonic()
        path = self.folder / f"step-{state.at.done:010d}"
        if not self._writes or path.exists():
            return
        tensors = state.tensors()
        parts = {_TENSORS: save(tensors), _FACTS: dump({"about": self.about, **state.facts()})}
        write_folder(path, parts, tensors, previous=None, what=_WHAT)
        sweep(self.folder, ".step-*.part")
        for old in self._found()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self, state: State) -> bool:
        """Put back the newest one that is whole; False if there is none.

        Raises:
            CheckpointError: It is of other data, another plan or another seed.
            CorruptModelError: There are some, and none is whole.
        """
        found = self._found()
        broken: FormatError | None = None
        for path in reversed(found):
            try:
                parts, said = read_folder(path, (_TENSORS, _FACTS), what=_WHAT)
                tensors, facts = tensors_in(parts[_TENSORS], said, _TENSORS), _facts(parts[_FACTS])
            except FormatError as error:
                broken = error
                continue
            if broken is not None:
                warnings.warn(f"{broken} Training goes on from {path.name} instead.", TrifoldWarning, stacklevel=2)
            self._require_same(facts["about"])
            state.restore(tensors, facts)
            return True
        if broken is not None:
            raise CorruptModelError(f"No checkpoint in {str(self.folder)!r} is whole. {broken} Delete the folder to begin anew.")
        return False

    def clear(self) -> None:
        """Remove them: the run is finished."""
        if self._writes:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def _require_same(self, about: Any) -> None:
        keys = [key for key in {**about, **self.about} if about.get(key) != self.about.get(key)]
        if keys:
            key = keys[0]
            raise CheckpointError(
                f"The checkpoint in {str(self.folder)!r} is of a run with {key} = {about.get(key)!r}; "
                f"this one has {self.about.get(key)!r}. Resume with the arguments and data that it began with, "
                "or pass resume=False to begin anew."
            )


def faults_in(folder: Path) -> list[str]:
    """What is wrong with the checkpoints in a folder.

    Args:
        folder: ``NAME.checkpoint``.

    Returns:
        One sentence a fault, with the name of the checkpoint; none: training can go on from each.
    """
    steps = sorted(folder.glob("step-*")) if folder.is_dir() else []
    if not steps:
        return [f"{str(folder)!r} holds no checkpoint."]
    found = [f"{p.name} is not part of it: remove it." for p in sorted(folder.iterdir()) if not p.name.startswith(("step-", ".step-"))]
    for step in steps:
        wrong = faults(step, (_TENSORS, _FACTS), what=_WHAT)
        if not wrong:
            try:
                parts, said = read_folder(step, (_TENSORS, _FACTS), what=_WHAT)
                tensors_in(parts[_TENSORS], said, _TENSORS)
                _facts(parts[_FACTS])
            except FormatError as error:
                wrong = [str(error)]
        found += [f"{step.name}: {one}" for one in wrong]
    return found


def _facts(data: bytes) -> dict[str, Any]:
    found = parse(data, _FACTS)
    if not isinstance(found, dict) or not isinstance(found.get("about"), dict):
        raise FormatError(
            f"{_FACTS} must hold the facts of a run under 'about'; found {type(found).__name__}. Pass resume=False to begin anew."
        )
    return found
