"""A server that ends as a whole: within seconds, with all that it started and left in files.

The process that was started guards the server, its child. For vLLM's front end loses a SIGTERM
while its engine starts (`zmq_socket_ctx` takes the interrupt for its own) and waits for it for ten
minutes, one that is killed leaves its engine behind, and Ray some processes, while it starts.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from math import inf
from select import select

import psutil

from slos.serving.calls import METRICS

GRACE = 6.0  # seconds in which a server may end by itself
FOLDER = "SLOS_FOLDER"  # environment variable
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of <sys/prctl.h>


def guard(leash: bool = False, grace: float = GRACE) -> None:
    """Returns in a child of this process, the server to be. This process passes signals on to it,
    and exits as it did; `grace` seconds after the first signal, or at the end of standard input if
    that is a `leash`, it kills what is left. Temporary files of the server are in a folder that
    is removed with it, or in the one that `FOLDER` names, which the holder of the leash removes."""
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    # handlers, as a mask would be this thread's alone; what is ignored, as under nohup, stays so
    before = {s: h for s in SIGNALS if (h := signal.getsignal(s)) != signal.SIG_IGN}
    before[signal.SIGCHLD] = signal.SIG_DFL  # ignored, it would not tell of the server's end
    signal.set_wakeup_fd(tell)
    for s in before:
        signal.signal(s, lambda *_: None)
    folder = _own_folder()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # whose parent has ended is this one's child
    if not (server := os.fork()):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        for s, handler in before.items():
            signal.signal(s, handler)
        signal.set_wakeup_fd(-1)
        os.close(heard)
        os.close(tell)
        return
    code = _ended(server, heard, leash, grace)
    while children := psutil.Process().children(recursive=True):
        for child in psutil.wait_procs(children, 1.0)[1]:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    if not os.environ.get(FOLDER) or select([0], [], [], 0)[0]:  # or its owner may look into it
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(code if code >= 0 else 128 - code)


def _ended(server: int, heard: int, leash: bool, grace: float) -> int:
    """Its exit code, negative by a signal, once the child has ended or was killed."""
    deadline = inf
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == server:
            return os.waitstatus_to_exitcode(status)
        if pid:
            continue  # an orphan
        left = deadline - time.monotonic()
        ready = select([heard, *[0] * leash], [], [], max(0.0, min(left, 3600.0)))[0]
        if left <= 0 or (leash and 0 in ready and not os.read(0, 1024)):
            print("slos: the server is killed", file=sys.stderr, flush=True)
            os.kill(server, signal.SIGKILL)
            return -signal.SIGKILL
        for s in os.read(heard, 64) if heard in ready else ():
            if s != signal.SIGCHLD:
                os.kill(server, s)
                deadline = min(deadline, time.monotonic() + grace)


def _own_folder() -> str:
    # the path of a socket in it, or in that of a replica in it, has at most 107 characters
    usual = tempfile.gettempdir()
    where = usual if len(usual) < 28 else "/tmp"
    folder = os.environ.get(FOLDER) or tempfile.mkdtemp(prefix="slos-server-", dir=where)
    os.environ["TMPDIR"], tempfile.tempdir = folder, None
    os.environ[METRICS] = tempfile.mkdtemp(prefix="metrics-")
    return folder
