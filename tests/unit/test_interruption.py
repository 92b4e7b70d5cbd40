"""Signals that end a command, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

#: A thread gets the signal, as the system may choose, while the reactor's thread sleeps with nothing to wake it.
GIVEN_TO_A_THREAD = """
import signal, sys, threading
from pathlib import Path
from twisted.internet import reactor
from client_shim.interruption import Interruption

main = Path(f"/proc/self/task/{threading.get_native_id()}/stat")
interruption = Interruption(reactor.stop)

def kill():
    sleeping = 0
    while sleeping < 200:  # each look lets the other thread go on, if it can
        sleeping = sleeping + 1 if main.read_text().rpartition(")")[2].split()[0] == "S" else 0
    signal.pthread_kill(threading.get_ident(), int(sys.argv[1]))
    threading.Event().wait()  # it wakes nobody

reactor.callWhenRunning(threading.Thread(target=kill, daemon=True).start)
interruption.run_reactor()
print(interruption.number)
"""

#: What shall be done at the first takes for ever.
SECOND = """
import os, signal
from twisted.internet import reactor
from client_shim.interruption import Interruption

interruption = Interruption(lambda: os.kill(os.getpid(), signal.SIGTERM))
reactor.callWhenRunning(os.kill, os.getpid(), signal.SIGINT)
interruption.run_reactor()
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60,
                          check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_wakes_the_reactor_whichever_thread_gets_it(number: signal.Signals) -> None:
    done = run(GIVEN_TO_A_THREAD, str(int(number)))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{int(number)}\n", "")


def test_the_second_signal_ends_the_process() -> None:
    assert run(SECOND).returncode == -signal.SIGTERM
