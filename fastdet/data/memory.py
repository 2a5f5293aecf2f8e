# SPDX-License-Identifier: BSD-3-Clause
"""Large blocks of memory that a loading process frees stay with it.

glibc gives a freed block of some MB back to the kernel, and gets it again page by page: for images
of 640 x 480 that was a fifth of the time of an item. A loading process needs the same blocks for
every image.
"""

import ctypes
import functools

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT = 2**30  # bytes at the end of the heap that are kept
_LARGEST = 2**25  # bytes of a block that comes from the heap; glibc takes no larger number


@functools.cache
def keep_freed_memory() -> bool:
    """Changes malloc in this process, once; returns whether its C library knows how."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT) and mallopt(_MMAP_THRESHOLD, _LARGEST))
