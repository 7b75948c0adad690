"""How this process holds memory for tensors, where the C library is glibc; elsewhere all of this does nothing.

By default glibc hands every large tensor back to the system when it is freed, and each page of the next one costs a
fault at its first touch. In a learning pass that was a third of the time."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Parameters of `mallopt`."""
_HUGEPAGE = 14
"""Advice to `madvise`."""
_HUGE = 1 << 21
"""Bytes of a huge page."""


def _library() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    if not all(hasattr(libc, name) for name in ("mallopt", "malloc_trim", "madvise")):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.malloc_trim.argtypes = [ctypes.c_size_t]
    return libc


_LIBC = _library()


def _keep() -> None:
    """One heap for all threads, of which nothing goes back to the system until `trim`. Before there are threads, as
    each takes its heap when it begins: so at import."""
    if _LIBC is not None:
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            _LIBC.mallopt(parameter, value)


def reserve(size: int) -> None:
    """Have the next `size` bytes of tensors lie in huge pages. Sampling reads all weights for each token, and then
    finds them with fewer steps."""
    if _LIBC is None:
        return
    start = _LIBC.malloc(size)
    if start is None:
        return
    first, end = -(-start // _HUGE) * _HUGE, (start + size) // _HUGE * _HUGE
    if end > first:
        _LIBC.madvise(first, end - first, _HUGEPAGE)
    _LIBC.free(start)


def trim() -> None:
    """Give memory that is free back to the system. Tensors of ever other sizes leave holes in the heap, which would
    grow by a gigabyte over a run."""
    if _LIBC is not None:
        _LIBC.malloc_trim(0)


_keep()
