"""Tunes glibc's memory allocator for tensors; does nothing with other C libraries.

By default glibc returns every large tensor to the system when it is freed, and each page of the next one costs a fault
at its first access. In a learning pass that took a third of the time."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Parameters of `mallopt`."""
_HUGEPAGE = 14
"""Advice value for `madvise`."""
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
    """Use one heap for all threads and keep its memory until `trim`. Must run before threads exist, because each takes
    its heap when it starts: so at import."""
    if _LIBC is not None:
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            _LIBC.mallopt(parameter, value)


def reserve(size: int) -> None:
    """Place the next `size` bytes of tensors in huge pages. Sampling reads all weights for each token, and address
    translation is then faster."""
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
    """Return free memory to the system. Tensors of varying sizes fragment the heap, which would grow by a gigabyte
    over a run."""
    if _LIBC is not None:
        _LIBC.malloc_trim(0)


_keep()
