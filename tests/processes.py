"""Processes that tests start.

They are forked off a server that has imported torch and its exporter, which takes seconds, and has done nothing else:
each starts as clean as a new interpreter.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch.multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "torch.export"])


def exit_code(target: Callable[..., object], *arguments: object) -> tuple[int | None, str]:
    """Of one process that calls ``target``: minus the signal that ended it, or 0, or 1 and what was raised."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_call, args=(sender, target, arguments))
    process.start()
    sender.close()
    process.join()
    with receiver:
        try:
            return process.exitcode, receiver.recv()
        except EOFError:
            return process.exitcode, ""


def _call(sender: Connection, target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    try:
        target(*arguments)
    except BaseException:
        sender.send(traceback.format_exc())
        raise


def spawn(target: Callable[..., object], arguments: tuple[object, ...], count: int) -> None:
    """``count`` processes that call ``target(rank, *arguments)``; raises what ends one of them early."""
    torch.multiprocessing.start_processes(target, arguments, count, start_method="forkserver")
