"""Threads and memory of a run on a CPU: threads wait asleep, and what was freed is kept for the next step."""

from __future__ import annotations

import ctypes
import os

# mallopt(3) of the GNU C library.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1


def wait_asleep() -> None:
    """Have the threads of this process's arithmetic wait for each other asleep; to be called before torch is imported.

    Spinning gains nothing measurable on an idle machine, and costs up to ten times the step where decoding workers want
    the same cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees, instead of asking for it again, page by page, a moment later.

    Every row needs the same few large blocks. By default glibc maps each of them again (those over 32 MB always), and
    the kernel clears their pages: of a small model's step that took a fifth. Peak memory stays about the same.

    Returns:
        Whether the C library took it; another one than glibc is left as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER)))
