"""Processes that take themselves for another machine's, and clocks that are five minutes ahead; where root may."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

_BOOT = "/proc/sys/kernel/random/boot_id"
AHEAD_SECONDS = 300
_CLOCK = f"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

int clock_gettime(clockid_t id, struct timespec *at) {{
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, at);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += {AHEAD_SECONDS};
    return failed;
}}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) {{ at->tv_sec = now.tv_sec; at->tv_usec = now.tv_nsec / 1000; }}
    return 0;
}}

time_t time(time_t *at) {{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}}
"""


def clock_ahead(folder: Path) -> dict[str, str]:
    """The environment of a process whose clock is ahead; empty where no compiler makes one."""
    library = folder / "clock.so"
    source = folder / "clock.c"
    source.write_text(_CLOCK)
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return {}
    return {"LD_PRELOAD": str(library)} if done.returncode == 0 else {}


def new_boot(folder: Path) -> Path:
    """A file with a boot id that no machine has."""
    file = folder / f"boot-{uuid.uuid4().hex[:8]}"
    file.write_text(f"{uuid.uuid4()}\n")
    return file


def elsewhere(boot: Path, command: list[str]) -> list[str]:
    """The command of a process that finds this boot id in place of its machine's: for a lock it is another machine."""
    return ["unshare", "--mount", "sh", "-c", f'mount --bind {boot} {_BOOT} && exec "$@"', "sh", *command]


def may_be_elsewhere(folder: Path) -> bool:
    """Whether this account may do that."""
    try:
        return subprocess.run(elsewhere(new_boot(folder), ["true"]), capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
