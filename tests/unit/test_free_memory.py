"""What was allocated in a burst is given back, though something small lives on between."""

from __future__ import annotations

import subprocess
import sys

#: Prints how many KiB this process has after a burst, and after give_back. Pieces are small enough for the heap.
BURST = """
from pathlib import Path
from helper.free_memory import give_back

def memory():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmRSS"))

pieces = [bytes(60_000) for _ in range(2000)]
kept = pieces[::20]
del pieces
before = memory()
give_back()
print(before, memory())
"""


def test_memory_between_what_lives_on_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", BURST], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before - after > 50_000
