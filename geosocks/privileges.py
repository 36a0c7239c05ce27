"""From root to somebody else, for good (setresuid(2), prctl(2)).

The order is that of every careful daemon: groups, group, user; then prove that there is no way
back, and see to it that no program started from here gains anything.
"""

import ctypes
import grp
import os
import pwd
from dataclasses import dataclass
from typing import Final

from geosocks.errors import ConfigError

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a process is to belong to."""

    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def named(cls, user: str | None, group: str | None) -> "Owner | None":
        """The one with these names, or numbers; None where neither is given.

        A user without a group gets the one of its own, and all those it is a member of.

        Raises:
            ConfigError: there is nobody of that name, or only root can become that.
        """
        if user is None and group is None:
            return None
        entry = _user(user) if user is not None else pwd.getpwuid(os.geteuid())
        gid = entry.pw_gid if group is None else _group(group)
        owner = cls(entry.pw_name, entry.pw_uid, gid, tuple(os.getgrouplist(entry.pw_name, gid)))
        if os.geteuid() != 0 and (owner.uid, owner.gid) != (os.geteuid(), os.getegid()):
            raise ConfigError(f"--user, --group: only root can become {owner.user}")
        return owner


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"--user: there is no user {name!a}; make one with `useradd`") from None


def _group(name: str) -> int:
    try:
        return (grp.getgrgid(int(name)) if name.isdecimal() else grp.getgrnam(name)).gr_gid
    except KeyError:
        raise ConfigError(f"--group: there is no group {name!a}") from None


def drop(owner: Owner) -> None:
    """Become ``owner``, with no way back, and without new rights by any program started from here.

    Its memory, which may hold secrets, is then nobody's to read but root's.

    Raises:
        OSError: the kernel does not let it happen, or there is a way back after all.
    """
    if os.geteuid() == 0 and owner.uid != 0:
        os.setgroups(owner.groups)
        os.setresgid(owner.gid, owner.gid, owner.gid)
        os.setresuid(owner.uid, owner.uid, owner.uid)
        _prove_that_it_is_for_good(owner)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)


def _prove_that_it_is_for_good(owner: Owner) -> None:
    if os.getresuid() != (owner.uid,) * 3 or os.getresgid() != (owner.gid,) * 3:
        raise PermissionError("user and group are not what they were set to")
    for come_back in (os.setuid, os.seteuid):
        try:
            come_back(0)
        except PermissionError:
            continue
        raise PermissionError("root's privileges came back after they were dropped")


def die_with_parent(number: int) -> None:
    """Have the kernel send this process ``number`` when the one that forked it ends."""
    _prctl(_PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
