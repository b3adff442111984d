"""Several processes on this machine that run one function, as torchrun would begin them."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from trifold import errors
from trifold.errors import DeviceError, Interrupted, TrifoldError
from trifold.train.stopping import stopping

_PATIENCE = 60.0  # seconds that processes have to end after one of them failed or was asked to


def together(function: Callable[..., Any], *args: Any, processes: int) -> None:
    """Run a function in so many new processes and wait; where one fails, the others are ended and its error is raised here.

    Ctrl-C and SIGTERM are handed on. Each process has its share of the machine's cores.

    Args:
        function: Of a module, called with ``args``; both are sent to the processes.
        processes: How many.

    Raises:
        TrifoldError: What a process raised.
        DeviceError: A process ended without saying why, or this program's main module cannot be imported by it.
    """
    context = torch.multiprocessing.get_context("spawn")
    said = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sent = pickle.dumps((function, args))  # plainly: as arguments of a process, tensors would be memory that all of them write to
    threads = max(1, torch.get_num_threads() // processes)
    group = [context.Process(target=_one, args=(rank, processes, port, threads, said, sent)) for rank in range(processes)]
    with stopping(listen=True) as asked:
        for process in group:
            process.start()
        deadline = None
        handed = 0
        while any(process.is_alive() for process in group):
            time.sleep(0.05)
            if asked.signal and not handed:
                handed = asked.signal
                for process in group:
                    process.terminate()
            failed = [process for process in group if process.exitcode]
            if (failed or handed) and deadline is None:
                deadline = time.monotonic() + _PATIENCE
            if deadline is not None and (time.monotonic() > deadline or (failed and not handed)):
                _end(group)
    if not any(process.exitcode for process in group):
        return
    if not said.empty():
        kind, message, details = said.get()
        raise _again(kind, message, details)
    codes = [process.exitcode for process in group]
    raise DeviceError(
        f"{processes} processes were needed, and one ended without a word; exit codes: {codes}. In a script, call fit(devices={processes}) "
        "under `if __name__ == '__main__':`, since each process imports the script; or begin it with "
        f"`torchrun --nproc-per-node={processes} script.py`."
    )


def _end(group: list[Any]) -> None:
    for process in group:
        if process.is_alive():
            process.terminate()
    for process in group:
        process.join(5)
        if process.is_alive():
            process.kill()


def _one(rank: int, world: int, port: int, threads: int, said: Any, sent: bytes) -> None:
    here = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in here.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "trifold"})
    torch.set_num_threads(threads)
    try:
        function, args = pickle.loads(sent)
        function(*args)
    except TrifoldError as error:
        details = {key: getattr(error, key) for key in ("step", "term", "signal") if hasattr(error, key)}
        said.put((type(error).__name__, str(error), details))
        sys.exit(error.code if isinstance(error, Interrupted) else 1)  # type: ignore[arg-type]
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _again(kind: str, message: str, details: dict[str, Any]) -> TrifoldError:
    """The error that a process raised."""
    found: Any = getattr(errors, kind, DeviceError)
    return found(message, **details)  # type: ignore[no-any-return]
