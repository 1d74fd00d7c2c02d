"""The processes of a data-parallel recovery: this one, and those it starts on this machine, each with its share of the threads."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.errors import EdgepipeError, PassError
from edgepipe.training.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepipe.training.recovery import Course

COURSE, MEETING = "course.pickle", "meeting"
PATIENCE = timedelta(minutes=10)  # with a peer that says nothing
GONE_S = 5.0
START = "from edgepipe.training.processes import main; main()"


@contextmanager
def together(course: Course, folder: Path) -> Iterator[Ranks]:
    """Inside, as many processes as the options say run the same recovery; this one is the first. `folder`: an empty one.

    Raises `PassError` when one of them ends before its time.
    """
    count = course.options.processes
    if count == 1:
        yield Ranks()
        return
    import torch
    from torch import distributed

    if not distributed.is_available():
        raise PassError("this PyTorch was built without torch.distributed", where="recover.processes", fix="leave processes out")
    threads = torch.get_num_threads()
    share = max(1, threads // count)
    (folder / COURSE).write_bytes(pickle.dumps(course))
    command = [sys.executable, "-P", "-c", START, str(folder), str(count), str(share)]
    peers = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.DEVNULL, stdout=sys.stderr, env=os.environ | _loopback())
        for number in range(1, count)
    ]
    os.environ.update(_loopback())
    torch.set_num_threads(share)
    try:
        _meet(folder, Ranks(0, count))
        yield Ranks(0, count)
    except EdgepipeError:
        raise
    except RuntimeError as error:  # what gloo raises when a peer is gone
        if not any(_failed(peer) for peer in peers):
            raise
        raise PassError(
            "a process that trained along ended early",
            where="pass recover",
            fix="the run log has its traceback; fewer processes take less memory",
        ) from error
    finally:
        torch.set_num_threads(threads)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for peer in peers:
            peer.kill()
            peer.wait()


def _failed(peer: subprocess.Popen[bytes]) -> bool:
    """Whether it ended by an error; its connection may be gone a moment before it is."""
    try:
        return peer.wait(GONE_S) != 0
    except subprocess.TimeoutExpired:
        return False


def _loopback() -> dict[str, str]:
    """Processes of one machine need no network, nor a name for it that can be looked up."""
    name = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    return {} if name is None else {"GLOO_SOCKET_IFNAME": name}


def _meet(folder: Path, ranks: Ranks) -> None:
    from torch import distributed

    store = distributed.FileStore(str(folder / MEETING), ranks.count)
    distributed.init_process_group("gloo", store=store, rank=ranks.number, world_size=ranks.count, timeout=PATIENCE)


def main() -> None:
    """What every process but the first does. The file it reads is its parent's."""
    import torch

    from edgepipe.training.recovery import recovery

    folder, count, threads, number = Path(sys.argv[1]), *map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    course: Course = pickle.loads((folder / COURSE).read_bytes())
    ranks = Ranks(number, count)
    _meet(folder, ranks)
    recovery(course, lambda *_: None, ranks)
