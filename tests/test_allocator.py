"""Freed memory is kept where nobody chose otherwise."""

import os
import subprocess
import sys

import pytest

from googlenet_train.machine import allocator

needs_glibc = pytest.mark.skipif(not allocator._is_glibc(), reason="needs Linux with glibc")

# Prints what was asked for, and how many MB of a freed tensor of 256 MB stay with the process.
PROGRAM = """
from googlenet_train.machine import allocator
asked = allocator.keep_freed_memory()
import gc, torch
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
before = resident()
numbers = torch.ones(64 << 20)
assert resident() - before > 200
del numbers
print(asked, round(resident() - before))
"""


def kept(**environment: str) -> tuple[str, int]:
    known = ("LD_PRELOAD", "GLIBC_TUNABLES")
    clean = {k: v for k, v in os.environ.items() if k not in known and "MALLOC_" not in k}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    asked, megabytes = done.stdout.split()
    return asked, int(megabytes)


@needs_glibc
def test_freed_memory_is_kept():
    asked, megabytes = kept()
    assert asked == "True"
    assert megabytes > 200


@needs_glibc
def test_an_allocator_that_somebody_set_up_is_left_alone():
    asked, megabytes = kept(MALLOC_ARENA_MAX="2")
    assert asked == "False"
    assert megabytes < 50
