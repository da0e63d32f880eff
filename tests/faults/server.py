"""Runs the command line in forks of itself, with everything imported and a narrow network.

A start takes a fraction of a second. One JSON object a line: {"cwd", "words", "before", "log"}
starts a fork, which executes the statements `before` and then the command, if there are words, and
is answered by its pid; {"wait": pid} by its exit code, negative for a signal.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import soak


def start(request: dict[str, object]) -> int:
    child = os.fork()
    if child != 0:
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        handle = os.open(str(request["log"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(handle, descriptor)
        os.chdir(str(request["cwd"]))
        exec(str(request["before"]), {})
        code = soak.cli.main(request["words"]) if request["words"] else 0
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main() -> None:
    soak.narrow()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = start(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
