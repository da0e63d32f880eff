"""Measure docs/reliability.md anew and rewrite its tables: one command.

    python scripts/reliability.py [--results FOLDER] [--kills 1000] [--real 30] [--files 10000]

Runs the tests of the fault table, the soak, the fuzzer and the benchmark of checkpoints, and writes
what came out between the markers of the document. Each leaves its result in FOLDER (default
reliability-results, which git ignores) and is not run again while it lies there; the soak goes on
where it was. So a stopped command goes on, and removing FOLDER measures everything anew. It takes
an hour on two cores.
"""

import argparse
import io
import json
import platform
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import fault_table
import soak
import torch

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"


class Tested(NamedTuple):
    """The outcomes of one test's cases, and what it counted."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    counts: dict[str, int] = {}  # noqa: RUF012  never changed

    def add(self, other: "Tested") -> "Tested":
        counts = {
            name: self.counts.get(name, 0) + other.counts.get(name, 0)
            for name in self.counts | other.counts
        }
        return Tested(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
            counts,
        )


def run_tests(folder: Path) -> list[Path]:
    """Run the tests of the table, file by file; a report each, which lies there if it was run."""
    wanted = sorted({test for row in fault_table.ROWS for test in row.tests})
    reports = []
    for file in sorted({test.split("::")[0] for test in wanted}):
        report = folder / (file.removesuffix(".py").replace("/", "-") + ".xml")
        if (ROOT / file).exists() and not report.exists():
            unfinished = report.with_suffix(".partial")
            command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow"]
            tests = [test for test in wanted if test.startswith(f"{file}::")]
            subprocess.run([*command, f"--junitxml={unfinished}", *tests], cwd=ROOT, check=False)
            unfinished.replace(report)
        if report.exists():
            reports.append(report)
    return reports


def read_tests(reports: Sequence[Path]) -> dict[str, Tested]:
    """By test, without the parameters of its cases."""
    found: dict[str, Tested] = {}
    for case in (case for path in reports for case in ElementTree.parse(path).iter("testcase")):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}".split("[")[0]
        ended = {child.tag for child in case}
        counts = {
            str(item.get("name")): int(item.get("value", "0")) for item in case.iter("property")
        }
        failed = bool(ended & {"failure", "error"})
        skipped = "skipped" in ended
        one = Tested(int(not failed and not skipped), int(failed), int(skipped), counts)
        found[name] = found.get(name, Tested()).add(one)
    return found


def result(row: fault_table.Row, tests: dict[str, Tested]) -> str:
    """What came out for one row, in words."""
    total = Tested()
    missing = 0
    for test in row.tests:
        if test in tests:
            total = total.add(tests[test])
        else:
            missing += 1
    words = []
    if total.failed:
        words.append(f"**{total.failed} FAILED**")
    if total.passed:
        words.append(f"holds, {total.passed} case{'s' * (total.passed > 1)}")
    words += [f"{value:,} {name}" for name, value in total.counts.items()]
    if total.skipped:
        words.append(f"{total.skipped} skipped on this machine")
    if missing:
        words.append("not run here" if missing == len(row.tests) else f"{missing} not run here")
    return ", ".join(words)


def table(tests: dict[str, Tested]) -> str:
    head = ["| fault | promise | tested by | result |", "|---|---|---|---|"]
    lines: list[str] = []
    for row in fault_table.ROWS:
        if not row.tests:
            lines += ["", f"### {row.fault}", "", *head]
            continue
        names = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in row.tests)
        lines.append(f"| {row.fault} | {row.promise} | {names} | {result(row, tests)} |")
    return "\n".join(lines[1:])


def kills(counts: dict[str, Any]) -> str:
    names = {
        "narrow": "random instants, narrow network, the command line in forks",
        "real": "random instants, full width, `python -m googlenet_train`",
        "calls": "every call of one save of a run, before and within it",
    }
    lines = [
        "| killed at | kills | of them within a save | before the first checkpoint | runs | lost | "
        "other bits |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, name in names.items():
        c = counts[kind]
        lines.append(
            f"| {name} | {c['kills']:,} | {c['within_a_save']:,} | "
            f"{c['before_the_first_checkpoint']:,} | {c['runs']:,} | {c['lost']} | "
            f"{c['other_bits']} |"
        )
    return "\n".join(lines)


def pauses(times: dict[str, float]) -> str:
    lines = ["| | ms | of a run that saves every 15 minutes |", "|---|---|---|"]
    names = {
        "ours": "ours: the pause (a copy to host memory)",
        "ours_in_all": "ours: the pause, and what the thread that writes takes from the steps",
        "torch_save": "`torch.save` in the loop, into the system's cache",
        "torch_save_fsync": "`torch.save` in the loop, on the disk",
    }
    for key, name in names.items():
        share = times[f"{key}_share_15_minutes"]
        lines.append(f"| {name} | {times[key]:,.0f} | {share:.4f} % |")
    safe = times["ours_until_safe"]
    return "\n".join(lines) + f"\n\nThe checkpoint is committed {safe:,.0f} ms after the pause."


def fill(text: str, sections: dict[str, str]) -> str:
    """`text` with each section between its markers replaced."""
    for name, content in sections.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        head, _, rest = text.partition(begin)
        _, found, tail = rest.partition(end)
        if not found:
            raise SystemExit(f"{DOCUMENT} has no markers for {name}")
        text = head + begin + content + end + tail
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "reliability-results")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--real", type=int, default=30)
    parser.add_argument("--files", type=int, default=10_000)
    given = parser.parse_args()
    folder = given.results
    folder.mkdir(parents=True, exist_ok=True)

    def once(name: str, command: list[str]) -> dict[str, Any]:
        path = folder / name
        if not path.exists():
            done = subprocess.run(
                [sys.executable, *command, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            if not done.stdout:
                raise SystemExit(f"{command[0]} ended with exit code {done.returncode}")
            path.write_text(done.stdout.splitlines()[-1])
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    wanted = ["--kills", str(given.kills), "--real", str(given.real)]
    out = ["--out", str(folder / "soak.jsonl")]
    with redirect_stdout(io.StringIO()) as answer:
        soak.main([*wanted, *out, "--json"])
    counts = json.loads(answer.getvalue().splitlines()[-1])
    fuzz = once("fuzz.json", ["scripts/fuzz_decoder.py", "--files", str(given.files)])
    times = once("checkpoint.json", ["scripts/benchmark_checkpoint.py"])
    tests = read_tests(run_tests(folder))

    machine = (
        f"{platform.system()}, Python {platform.python_version()}, torch "
        f"{torch.__version__.split('+')[0]}, CPU {torch.backends.cpu.get_cpu_capability()}"
    )
    sections = {
        "machine": machine,
        "kills": kills(counts),
        "table": table(tests),
        "fuzz": (
            f"{fuzz['files']:,} files: {fuzz['decoded']:,} decoded, {fuzz['reported']:,} reported "
            f"with their path, {len(fuzz['wrong'])} crashed, hung or were reported wrongly."
        ),
        "pause": pauses(times),
    }
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), sections))
    failed = sum(test.failed for test in tests.values())
    lost = sum(c["lost"] + c["other_bits"] for c in counts.values())
    print(
        f"{DOCUMENT}: {failed} failed, {lost} lost or different, {len(fuzz['wrong'])} in the fuzz"
    )
    sys.exit(int(bool(failed or lost or fuzz["wrong"])))


if __name__ == "__main__":
    main()
