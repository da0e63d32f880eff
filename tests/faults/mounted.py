"""A run on a small disk and in a read-only folder, mounted for real; prints JSON.

    unshare -Urm python mounted.py FOLDER     (FOLDER holds photos and tiny.yaml)

In a mount namespace of its own: nobody else sees the mounts, and they end with the process.
"""

import json
import subprocess
import sys
from pathlib import Path

from server import soak, start

from googlenet_train import checkpoint


def run(folder: Path, name: str, *words: str) -> tuple[int, str]:
    import os

    log = folder / "log"
    request = {
        "cwd": str(folder),
        "words": ["--config", "tiny.yaml", f"run.dir={name}", *words],
        "before": "",
        "log": str(log),
    }
    code = os.waitstatus_to_exitcode(os.waitpid(start(request), 0)[1])
    return code, log.read_text()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def main() -> None:
    soak.narrow()
    folder = Path(sys.argv[1])
    answer: dict[str, object] = {}

    disk = folder / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=6m", "none", str(disk))
    words = ("checkpoint.every_steps=1", "checkpoint.keep=9")
    code, error = run(folder, "disk/run", *words)
    found, bad = checkpoint.newest(disk / "run/checkpoints")
    answer["full"] = [code, error, found.step if found else 0, bad, files(disk / "run/checkpoints")]
    mount("-o", "remount,size=60m", str(disk))
    code, error = run(folder, "disk/run", *words, "--resume")
    answer["with room again"] = [code, error]
    subprocess.run(["cp", "-r", str(disk / "run"), str(folder / "run")], check=True)

    for name in ("empty", "begun"):
        (folder / name).mkdir()
    code, error = run(folder, "begun/run", "schedule.epochs=1")
    assert code == 0, error
    for name, flag in (("empty", ""), ("begun", "--resume")):
        before = files(folder / name)
        mount("--bind", str(folder / name), str(folder / name))
        mount("-o", "remount,ro,bind", str(folder / name))
        code, error = run(folder, f"{name}/run", *flag.split())
        answer[f"read-only, {name}"] = [code, error, files(folder / name) == before]
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
