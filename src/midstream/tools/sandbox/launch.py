"""Builds the bubblewrap command: what the sandbox's Python can see, and its rights."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import sys
import sysconfig
from pathlib import Path

from midstream.tools.sandbox import seccomp
from midstream.tools.sandbox.base import SandboxUnavailable

SITE = "/opt/site-packages"
WORKER = "/opt/worker.py"
FONTS = "/opt/fonts.conf"
SHARED_MEMORY_MB = 16
"""Size of /dev/shm, which semaphores of multiprocessing need."""
OWN_USERS = range(0x70000000, 0x7FFD0000)
"""User ids that no system assigns (systemd's list of reserved ranges)."""
FEW_USERS = range(61184, 65520)
"""The same in a container that maps few ids: those of systemd's dynamic users."""
ENVIRONMENT = {
    "FONTCONFIG_FILE": FONTS,
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "2",
    "MPLBACKEND": "agg",
    "MPLCONFIGDIR": "/tmp/.matplotlib",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/usr/bin:/bin",
    "TMPDIR": "/tmp",
    "USER": "sandbox",
}
INSTALL = "apt-get install bubblewrap (Debian, Ubuntu), dnf install bubblewrap (Fedora)"


@functools.cache
def bwrap() -> str:
    """Return the path of bubblewrap. Raises `SandboxUnavailable`."""
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable("bubblewrap needs Linux", "use a Linux machine or container")
    if not seccomp.supported():
        raise SandboxUnavailable(
            f"there is no system call filter for {os.uname().machine}", f"known: {', '.join(seccomp.AUDIT_ARCH)}"
        )
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxUnavailable("bubblewrap (bwrap) is not installed", INSTALL)
    return found


def own_user() -> int:
    """Return a user id for one sandbox, so that limits by user apply to it alone; 0 if bubblewrap does not run as
    root."""
    if os.geteuid() != 0:
        return 0
    mapped = sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines())
    return secrets.choice(OWN_USERS if mapped > OWN_USERS.stop else FEW_USERS)


def command(control: int, info: int, filter_fd: int, user: int, file_mb: int) -> list[str]:
    """Return the command line that starts one worker. It inherits the open files `control`, `info` and `filter_fd`;
    `user` is the result of `own_user`."""
    python, libraries, site = _python()
    words = [bwrap(), "--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"]
    words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--cap-drop", "ALL"]
    if user:
        # Only for the first lines of the worker, which drop root and these two capabilities.
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    for name, value in ENVIRONMENT.items():
        words += ["--setenv", name, value]
    words += ["--ro-bind", "/usr", "/usr"]
    for folder in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", folder)
        if path.is_symlink():
            words += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    binds = [(str(python), str(python)), *((path, path) for path in libraries)]
    binds += [(site, SITE)] if Path(site).is_dir() else []
    binds += [(str(Path(__file__).with_name(Path(name).name)), name) for name in (WORKER, FONTS)]
    made: set[Path] = set()
    for source, target in binds:
        if target.startswith("/usr/"):
            continue
        for parent in reversed(Path(target).parents[:-1]):
            if parent not in made:
                made.add(parent)
                words += ["--perms", "0755", "--dir", str(parent)]
        words += ["--ro-bind", source, target]
    if Path(site, "midstream").is_dir():
        words += ["--tmpfs", f"{SITE}/midstream", "--remount-ro", f"{SITE}/midstream"]
    words += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    words += ["--perms", "1777", "--size", str(SHARED_MEMORY_MB << 20), "--tmpfs", "/dev/shm"]
    words += ["--perms", "1777", "--size", str(file_mb << 20), "--tmpfs", "/tmp"]
    words += ["--remount-ro", "/", "--chdir", "/tmp"]
    words += ["--seccomp", str(filter_fd), "--info-fd", str(info), "--"]
    return [*words, str(python), "-I", "-S", "-B", WORKER, str(control), str(user), SITE]


@functools.cache
def _python() -> tuple[Path, tuple[str, ...], str]:
    """Return this Python's executable, and the folders of its standard library and packages."""
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    folders = {str(Path(sys.base_prefix, name).resolve()) for name in ("lib", sys.platlibdir)}
    return python, tuple(sorted(folder for folder in folders if Path(folder).is_dir())), sysconfig.get_path("platlib")
