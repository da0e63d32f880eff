"""Compare what `check` says of a run, its memory and its time, with the run itself.

    scripts/check_against_run.py [--json] --config quickstart.yaml schedule.epochs=1

Each is a process of its own, one after the other; the run's folder does not stay. Memory is the
most that the process has had (ru_maxrss), on a GPU the most that its tensors have
(torch.cuda.max_memory_allocated). Time is that from the first step to the last evaluation.
"""

import json
import subprocess
import sys
import tempfile

# Runs the command line and prints the peak of this very process as its last line.
_MEASURED = """
import json, resource, sys, time
from googlenet_train.cli import main
code = main(sys.argv[1:])
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import torch
if torch.cuda.is_available():
    peak = torch.cuda.max_memory_allocated()
print(json.dumps(peak))
sys.exit(code)
"""


def main() -> None:
    words = sys.argv[1:]
    as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    check = _output([sys.executable, "-m", "googlenet_train", "check", *words, "--json"])
    said = json.loads(check[-1])
    with tempfile.TemporaryDirectory() as folder:
        run = _output([sys.executable, "-c", _MEASURED, *words, f"run.dir={folder}/run"])
        seconds = _seconds(f"{folder}/run/checkpoints")
    memory = said["memory_bytes"]
    result = {
        "memory_said": memory["peak"],
        "memory_taken": json.loads(run[-1]),
        "of_it_training": memory["training"],
        "of_it_evaluation": memory["evaluation"],
        "of_it_checkpoint": memory["checkpoint"],
        "seconds_said": said["seconds_to_train"],
        "seconds_taken": seconds,
    }
    for name, value in result.items():
        print(f"{name:<18}{value:>16,}")
    if as_json:
        print(json.dumps(result))


def _output(command: list[str]) -> list[str]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


def _seconds(checkpoints: str) -> float:
    """What the last checkpoint states: seconds since the run was opened."""
    from pathlib import Path

    from googlenet_train import checkpoint

    return float(checkpoint.header(checkpoint.checkpoints(Path(checkpoints))[-1])["seconds"])


if __name__ == "__main__":
    main()
