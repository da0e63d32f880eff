"""Kill a save at every call, and at pairs of calls in a row: run as a script, prints JSON.

    python save_killer.py each|pairs|strace [SABOTAGE]

It imports PyTorch once; each save is a fork. A folder holds the checkpoints of steps 1 and 2; what
is killed is the save of step 3 and the pruning after it, which leaves 2 and 3.
"""

import ctypes
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import killing
import torch

from googlenet_train import checkpoint

WRITES = "write,pwrite64,writev,pwritev"
SYSCALLS = (
    f"{WRITES},openat,open,creat,close,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,"
    "mkdir,mkdirat,rmdir,ftruncate,truncate"
)


def state(step: int) -> checkpoint.TrainState:
    generator = torch.Generator().manual_seed(step)
    # Larger than a buffer of Python's, so that it takes several writes.
    weights = {f"w{i}": torch.randn(7_000, generator=generator) for i in range(3)}
    return checkpoint.TrainState(step, weights, info={"classes": ["a"], "best": {}})


def save(folder: Path) -> None:
    path = checkpoint.save(folder, state(3))
    checkpoint.prune(folder, path, 2)


def no_temporary_file() -> None:
    """Sabotage: the new file is written where it is to be."""

    def write(path, content):
        with path.open("wb") as file:
            for piece in content:
                file.write(piece)

    checkpoint.write_durably = write


def old_ones_first() -> None:
    """Sabotage: room is made before the new one is safe, and what it makes is not looked at."""
    real = checkpoint.save

    def save(folder, state):
        for path in checkpoint.checkpoints(folder):
            path.unlink()
        return real(folder, state)

    checkpoint.save = save


def leftovers_stay() -> None:
    """Sabotage: what a killed save left half written is never removed."""

    def save(folder, state):
        path = checkpoint.checkpoint_path(folder, state.step)
        name = path.with_name(f"{os.getpid()}.partial")
        name.write_bytes(b"".join(checkpoint._serialise(state)))
        name.replace(path)
        return path

    checkpoint.save = save


SABOTAGE = {f.__name__: f for f in (no_temporary_file, old_ones_first, leftovers_stay)}


class Killer:
    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "checkpoints"
        self.before: dict[str, bytes] = {}
        self.failures: list[str] = []
        self.kills = 0
        for step in (1, 2):
            path = checkpoint.save(self.folder, state(step))
            self.before[path.name] = path.read_bytes()
        path = checkpoint.save(root / "other", state(3))
        self.after = path.read_bytes()

    def reset(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, content in self.before.items():
            (self.folder / name).write_bytes(content)

    def fork(self, number: int, how: str) -> int:
        """A save in a fork that dies at its `number`-th call; its exit code."""
        child = os.fork()
        if child == 0:
            code = 70
            try:
                made = killing.arm(number, how)
                save(self.folder)
                code = 0
                (self.root / "calls").write_text(json.dumps(made))
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def check(self, what: str) -> None:
        """After a kill the older ones are whole, and the newest verifies and is 2 or 3."""
        self.kills += 1
        try:
            found, bad = checkpoint.newest(self.folder)
            assert bad == [], bad
            assert found is not None
            assert found.step in (2, 3), found.step
            for path in checkpoint.checkpoints(self.folder):
                want = self.before.get(path.name, self.after)
                assert path.read_bytes() == want, path.name
            assert found.step == 3 or len(checkpoint.checkpoints(self.folder)) == 2
        except Exception as error:
            self.failures.append(f"{what}: {error}")

    def finish(self, what: str) -> None:
        """The same save once more, as a resumed run makes it, and nothing is left over."""
        self.fork(0, "never")
        names = sorted(path.name for path in self.folder.iterdir())
        if names != ["step-00000002.safetensors", "step-00000003.safetensors"]:
            self.failures.append(f"{what}: then {names}")

    def each(self) -> list[str]:
        self.reset()
        assert self.fork(0, "never") == 0
        calls: list[str] = json.loads((self.root / "calls").read_text())
        for number, name in enumerate(calls, 1):
            for how in killing.HOW:
                if how == "within" and name != "write":
                    continue
                self.reset()
                assert self.fork(number, how) == -signal.SIGKILL
                self.check(f"{how} {name}, number {number}")
                self.finish(f"{how} {name}, number {number}")
        return calls

    def pairs(self, count: int) -> list[str]:
        """Two kills in a row within one save."""
        self.reset()
        assert self.fork(0, "never") == 0
        calls: list[str] = json.loads((self.root / "calls").read_text())
        chance = random.Random(0)
        for _ in range(count):
            self.reset()
            what = []
            for _ in range(2):
                number, how = chance.randint(1, len(calls)), chance.choice(killing.HOW)
                # The second may end before it is killed: it has a leftover more, or less to prune.
                if self.fork(number, how) == -signal.SIGKILL:
                    what.append(f"{how} number {number}")
                    self.check(" then ".join(what))
            self.finish(" then ".join(what))
        return calls

    # --- by strace: past Python, on the system calls themselves ----------------------------------

    def trace(self, *injection: str) -> tuple[int, list[str]]:
        """A save under strace; its exit code and the calls made."""
        child = os.fork()
        if child == 0:
            code = 70
            try:
                ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER
                os.kill(os.getpid(), signal.SIGSTOP)
                save(self.folder)
                code = 0
            finally:
                os._exit(code)
        os.waitpid(child, os.WUNTRACED)
        log = self.root / "trace"
        tracer = subprocess.Popen(
            ["strace", "-p", str(child), "-y", "-o", log, "-e", f"trace={SYSCALLS}", *injection],
            stderr=subprocess.PIPE,
            text=True,
        )
        line = tracer.stderr.readline()
        if "attached" not in line:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            tracer.wait()
            raise PermissionError(line)
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
        tracer.communicate()
        return os.waitstatus_to_exitcode(status), log.read_text().splitlines()

    def strace(self) -> list[str]:
        self.reset()
        code, lines = self.trace()
        assert code == 0
        calls = [line for line in lines if re.match(r"\w+\(", line)]
        seen: dict[str, int] = {}
        for number, line in enumerate(calls, 1):
            name = line.split("(")[0]
            seen[name] = seen.get(name, 0) + 1
            self.reset()
            code, _ = self.trace("-e", f"inject={name}:signal=KILL:when={seen[name]}")
            assert code == -signal.SIGKILL, (line, code)
            self.check(f"call {number}, {line}")
            self.finish(f"call {number}, {line}")
        return calls


def main() -> None:
    what, sabotage = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as root:
        killer = Killer(Path(root))
        for name in sabotage:
            SABOTAGE[name]()
        began = time.monotonic()
        try:
            calls = killer.pairs(50) if what == "pairs" else getattr(killer, what)()
        except PermissionError as error:
            print(json.dumps({"refused": str(error)}))
            return
    print(
        json.dumps(
            {
                "calls": calls,
                "kills": killer.kills,
                "failures": killer.failures,
                "seconds": time.monotonic() - began,
            }
        )
    )


if __name__ == "__main__":
    main()
