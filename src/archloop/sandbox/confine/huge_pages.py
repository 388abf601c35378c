"""Memory of the fork server in pages of 2 MiB.

A fork copies, and an exit drops, 100 entries instead of 57,000: 1.4 ms instead of 6.3 for the fork,
and 3 ms off each candidate's end.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

_SIZE = 2 << 20
_MADV_COLLAPSE = 25
"""madvise value of Linux 6.1 and later; earlier kernels refuse it, which is harmless."""
_ANONYMOUS = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw.p \S+ \S+ 0\s")


def collapse() -> None:
    """Collapse the calling process's private memory into huge pages, where the kernel can."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in maps.read_text().splitlines():
        if found := _ANONYMOUS.match(line + " "):
            start = -(-int(found[1], 16) // _SIZE) * _SIZE
            size = int(found[2], 16) // _SIZE * _SIZE - start
            if size > 0:
                libc.madvise(start, size, _MADV_COLLAPSE)
