"""How much memory this process may still take, and the most that it took."""

import sys
from contextlib import suppress
from pathlib import Path

# What a group of processes may use and uses: control groups of version 2, and of version 1.
_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def available(root: Path = Path("/")) -> int | None:
    """Bytes, after all caches that the system would give up; None where it does not say (no Linux).

    The least of what the machine has left and of what each group of processes that holds this one
    may still take: containers and job schedulers set limits there.
    """
    try:
        text = (root / "proc/meminfo").read_text()
        left = [1024 * next(int(v) for k, v in _pairs(text) if k == "MemAvailable:")]
    except (OSError, ValueError, StopIteration):
        return None
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    top = root / "sys/fs/cgroup"
    for line in groups:  # "number:controllers:/path"; version 2 has no controllers there
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            group = top / controllers / path.strip("/")
            left += [room for g in (group, *group.parents) if (room := _room(g)) is not None]
    return max(0, min(left))


def gigabytes(count: int) -> str:
    """So many bytes in GB, for people: "0.62", "14"."""
    return f"{count / 1e9:.2f}" if count < 10e9 else f"{count / 1e9:.0f}"


def _room(group: Path) -> int | None:
    """Bytes that a control group may still take; None where it has no limit or is none."""
    for limit, used in _LIMITS:
        try:
            room = int((group / limit).read_text()) - int((group / used).read_text())
            stat = dict(_pairs((group / "memory.stat").read_text()))
        except (OSError, ValueError):  # "max": no limit
            continue
        return room + int(stat.get("inactive_file", 0))  # pages of files are given up
    return None


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(words[0], words[1]) for line in text.splitlines() if len(words := line.split()) > 1]


def forget_peak() -> None:
    """Let `peak` begin anew; where the system cannot (no Linux), it goes on since the start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident() -> int | None:
    """Bytes that this process has in memory now; None where the system does not say (no Linux)."""
    with suppress(OSError, ValueError, StopIteration):
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(v) for k, v in _pairs(status) if k == "VmRSS:")
    return None


def peak() -> int | None:
    """The most bytes that this process has had in memory since `forget_peak`; None on Windows."""
    with suppress(OSError, ValueError, StopIteration):
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(v) for k, v in _pairs(status) if k == "VmHWM:")
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
