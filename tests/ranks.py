"""Several ranks on one machine, quickly: PyTorch is imported once, then one child is forked a rank.

`python tests/ranks.py N CODE` runs CODE in N processes that find what torchrun would tell them in
their environment, and prints their exit codes as JSON on its last line.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ranks:
    """What the ranks of one run returned."""

    codes: list[int]  # minus the signal's number where one killed it
    stdout: str
    stderr: str


def on_ranks(count: int, code: str, cwd: Path, timeout: float = 120) -> Ranks:
    """Run Python `code` on `count` ranks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(count), code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    return Ranks(json.loads(lines[-1]), "\n".join(lines[:-1]), done.stderr)


def train(count: int, cwd: Path, *arguments: str, before: str = "") -> Ranks:
    """The command line on `count` ranks, after the statements `before`."""
    words = ["--config", "tiny.yaml", *arguments]
    if not any(word.startswith("distributed.timeout") for word in arguments):
        words.append("distributed.timeout=20")
    code = f"import sys\n{before}\nfrom googlenet_train.cli import main\nsys.exit(main({words!r}))"
    return on_ranks(count, code, cwd)


def _main(count: int, code: str) -> None:
    import googlenet_train.train  # noqa: F401

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children: list[int] = []
    stopped: set[int] = set()  # they hang for good: killed once the others have ended
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            _run(code)
        children.append(child)
    status: dict[int, int] = {}
    while not all(child in status or child in stopped for child in children):
        child, how = os.wait3(os.WUNTRACED)[:2]
        if os.WIFSTOPPED(how):
            stopped.add(child)
        else:
            status[child] = how
    for child in stopped:
        os.kill(child, signal.SIGKILL)
        status[child] = os.waitpid(child, 0)[1]
    codes = [os.waitstatus_to_exitcode(status[child]) for child in children]
    print(json.dumps(codes), flush=True)


def _run(code: str) -> None:
    """Never returns: what CODE exits with is the child's exit code."""
    signal.alarm(100)  # a rank that hangs must not hold the tests up
    try:
        exec(code, {"__name__": "__main__"})
        result = 0
    except SystemExit as stop:
        result = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        result = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(result)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
