"""Assembles a seccomp filter for bubblewrap: a BPF program of the kernel, as bytes.

Allows what Python and its scientific packages use and denies the rest by name: sockets other than Unix sockets, new
namespaces, tracing and reading other processes, mounting, kernel keys, BPF, io_uring, memory outside the limits (memfd,
System V). Denied calls fail with EPERM. Calls newer than this table, and clone3, whose flags a filter cannot read, fail
with ENOSYS, so that the C library falls back to older ones.
"""

from __future__ import annotations

import errno
import platform
import struct

LOAD, EQUAL, GREATER_EQUAL, GREATER, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
ALLOW, KILL_PROCESS, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24
"""Offsets into `struct seccomp_data`; for arguments the lower half, on little-endian machines."""
AF_UNIX = 1
NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
X32_BIT = 0x40000000
NEWEST_KNOWN = 450

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CHECKED = {"clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "ioctl": (16, 29)}
"""System calls that are allowed or denied by their arguments, by number on x86_64 and aarch64."""
DENIED: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_mempolicy": (239, 236),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_getsetattr": (245, 185),
    "mq_notify": (244, 184),
    "mq_open": (240, 180),
    "mq_timedreceive": (243, 183),
    "mq_timedsend": (242, 182),
    "mq_unlink": (241, 181),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
    "vmsplice": (278, 75),
}
"""System calls that always fail, by number on x86_64 and aarch64; None if the architecture lacks the call."""


def supported() -> bool:
    """Whether this machine's processor has a table."""
    return platform.machine() in AUDIT_ARCH


def program(machine: str | None = None) -> bytes:
    """Return the filter for `machine` (default: this one), an array of `struct sock_filter`. Raises `KeyError` for an
    architecture without a table."""
    machine = machine or platform.machine()
    column = list(AUDIT_ARCH).index(machine) if machine in AUDIT_ARCH else -1
    if column < 0:
        raise KeyError(machine)
    number = {name: numbers[column] for name, numbers in CHECKED.items()}
    denied, missing = FAIL | errno.EPERM, FAIL | errno.ENOSYS
    code = [
        _op(LOAD, ARCHITECTURE),
        _op(EQUAL, AUDIT_ARCH[machine], 1, 0),
        _op(RETURN, KILL_PROCESS),
        _op(LOAD, NUMBER),
    ]
    if machine == "x86_64":
        code += [_op(GREATER_EQUAL, X32_BIT, 0, 1), _op(RETURN, denied)]
    code += [_op(GREATER, NEWEST_KNOWN, 0, 1), _op(RETURN, missing)]
    code += [_op(EQUAL, number["clone3"], 0, 1), _op(RETURN, missing)]
    for numbers in DENIED.values():
        if (one := numbers[column]) is not None:
            code += [_op(EQUAL, one, 0, 1), _op(RETURN, denied)]
    code += [
        # socket(family, ...): Unix sockets only; they reach nothing outside.
        _op(EQUAL, number["socket"], 0, 4),
        _op(LOAD, FIRST_ARGUMENT),
        _op(EQUAL, AF_UNIX, 0, 1),
        _op(RETURN, ALLOW),
        _op(RETURN, denied),
        # clone(flags, ...): processes and threads, no namespaces.
        _op(EQUAL, number["clone"], 0, 4),
        _op(LOAD, FIRST_ARGUMENT),
        _op(ANY_BIT, NEW_NAMESPACES, 0, 1),
        _op(RETURN, denied),
        _op(RETURN, ALLOW),
        # ioctl(fd, request, ...): not those that type into a terminal.
        _op(EQUAL, number["ioctl"], 0, 4),
        _op(LOAD, SECOND_ARGUMENT),
        _op(EQUAL, TIOCSTI, 1, 0),
        _op(EQUAL, TIOCLINUX, 0, 1),
        _op(RETURN, denied),
        _op(RETURN, ALLOW),
    ]
    return b"".join(code)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
