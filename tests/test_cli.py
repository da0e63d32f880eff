"""What a person types, and how soon it answers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import googlenet_train
from googlenet_train import cli as commands
from googlenet_train.errors import ExitCode, UserError


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        code = commands.main(words)
    except SystemExit as ending:  # argparse, after --help and --version
        code = int(ending.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, dict[str, object]]]:
    """What reaches launch.prepare, which then finds the run finished."""
    calls: list[tuple[object, dict[str, object]]] = []
    monkeypatch.setattr(
        "googlenet_train.run.launch.prepare", lambda loaded, **flags: calls.append((loaded, flags))
    )
    return calls


def test_without_an_argument_eight_lines_with_three_examples(capsys):
    code, out, err = call(capsys)
    assert (code, err) == (ExitCode.USAGE, "")
    lines = out.splitlines()
    assert len(lines) == 8
    examples = [line for line in lines if line.startswith("  googlenet-train")]
    assert len(examples) == 3
    assert max(map(len, lines)) <= 80


def test_the_examples_are_commands_that_parse(capsys, prepared, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for line in commands.WELCOME.splitlines():
        if not line.startswith("  "):
            continue
        _, *words = line.strip().split("  ")[0].split()
        code, _, err = call(capsys, *words)
        if words[0] == "evaluate":
            assert (code, "runs/quickstart does not exist" in err) == (ExitCode.USAGE, True)
        else:
            assert code == ExitCode.DONE
    assert len(prepared) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["evaluate", "--help"],
        ["predict", "--help"],
        ["config", "--help"],
        ["--version"],
        ["config", "--schema"],
        ["--config", "absent.yaml"],
        ["--config", "quickstart.yaml", "data.train=absent"],
        ["--config", "quickstart.yaml", "optimizer.batch_size=99999"],
        ["evaluate", "absent"],
        ["predict", "absent", "photo.jpg"],
    ],
)
def test_these_answers_need_no_torch(words, tmp_path):
    """That is what makes them come at once."""
    code = (
        "import sys\nfrom googlenet_train.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'torchvision', 'tensorboard'} & sys.modules.keys()\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_help_needs_neither_numpy_nor_pydantic():
    code = (
        "import sys\nfrom googlenet_train.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(str({'numpy', 'pydantic', 'yaml'} & sys.modules.keys() or 0).strip('0') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_the_verbs_the_flags_and_the_exit_codes(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for word in (*commands.VERBS, "--config", "--resume", "--fresh", "--allow-config-change"):
        assert word in out
    assert "4 checkpoint" in out


def test_version(capsys):
    assert call(capsys, "--version") == (0, f"googlenet-train {googlenet_train.__version__}\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "quickstart.yaml", "--resume", "optimizer.lr=0.5", "schedule.epochs=3"],
        [
            "train",
            "--config",
            "quickstart.yaml",
            "--resume",
            "optimizer.lr=0.5",
            "schedule.epochs=3",
        ],
        ["optimizer.lr=0.5", "--config", "quickstart.yaml", "schedule.epochs=3", "--resume"],
        ["train", "optimizer.lr=0.5", "schedule.epochs=3", "--resume", "--config=quickstart.yaml"],
    ],
)
def test_flags_and_overrides_in_any_order(words, prepared, capsys):
    assert call(capsys, *words)[0] == ExitCode.DONE
    [(loaded, flags)] = prepared
    assert (loaded.config.optimizer.lr, loaded.config.schedule.epochs) == (0.5, 3)
    assert flags == {"resume": True, "fresh": False, "allow": []}


def test_allowed_changes_add_up(prepared, capsys):
    allow = ["--allow-config-change", "log.every_steps", "--allow-config-change", "ema.decays"]
    call(capsys, "--config", "quickstart.yaml", "--resume", *allow)
    assert prepared[0][1]["allow"] == ["log.every_steps", "ema.decays"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evalute", "runs/x"], "Did you mean 'evaluate'?"),
        (["banana"], "The verbs are train, evaluate, predict, check, data, config"),
        (["train"], "Pass --config FILE"),
        (["optimizer.lr=1"], "Pass --config FILE"),
        (["--resume"], "Pass --config FILE"),
        (["--conf"], "expected one argument"),
        (["--config", "quickstart.yaml", "--nonsense"], "--nonsense"),
        (["--config", "quickstart.yaml", "banana"], "data.train=banana"),
        (["--config", "quickstart.yaml", "--resume", "--fresh"], "exclude each other"),
        (["--config", "quickstart.yaml", "--allow-config-change", "ema.decays"], "--resume"),
        (
            ["--config", "quickstart.yaml", "--resume", "--allow-config-change", "optimizer.lrr"],
            "Did you mean optimizer.lr?",
        ),
        (["config"], "--defaults --schema"),
        (["evaluate"], "RUN"),
        (["evaluate", "runs/x", "--crops", "3"], "1, 10, 144"),
        (["predict", "runs/x"], "PHOTO"),
        ([""], "argument 1 is empty"),
        (["check", ""], "argument 2 is empty"),
        (["predict", "runs/x", ""], "argument 3 is empty"),
        (["evaluate", ""], "argument 2 is empty"),
        (["evaluate", "runs/x", "--data", ""], "argument 4 is empty"),
        (["evaluate", "runs/x", "--data="], "--data= has no value"),
        (["data", "verify", ""], "argument 3 is empty"),
        (["data", "show", "x", "--out", ""], "argument 5 is empty"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_exit_2(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words)
    assert (code, out) == (ExitCode.USAGE, "")
    [line] = [line for line in err.splitlines() if not line.startswith(("googlenet", "config "))]
    assert line.startswith("error    ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_verbs_take_flags_between_their_words(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "'a' " not in call(capsys, "evaluate", "a", "--json", "b")[2]
    assert "a does not exist" in call(capsys, "evaluate", "a", "--json", "b")[2]
    assert "a does not exist" in call(capsys, "predict", "a", "b.jpg", "--json", "c.jpg")[2]


def test_config_defaults_is_a_config_and_schema_is_json(capsys):
    code, out, err = call(capsys, "config", "--defaults")
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["optimizer"]["lr"] == 0.1
    code, out, err = call(capsys, "config", "--schema")
    assert (code, err) == (0, "")
    assert "optimizer" in json.loads(out)["properties"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.yaml:3 wrong", ExitCode.NUMERIC), 5, "error    a.yaml:3 wrong\n"),
        (OSError(28, "No space left on device"), 6, "error    storage: No space left on device\n"),
        (PermissionError(13, "Permission denied", "x"), 6, "error    x: Permission denied\n"),
        (KeyboardInterrupt(), 130, "\nstopped\n"),
    ],
)
def test_every_ending_has_its_code_and_its_line(error, code, line, capsys, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("googlenet_train.run.launch.prepare", fail)
    assert call(capsys, "--config", "quickstart.yaml") == (code, "", line)


def test_a_bug_of_ours_shows_where_and_exits_1(capsys, monkeypatch):
    monkeypatch.setattr("googlenet_train.run.launch.prepare", lambda *_, **__: 1 / 0)
    code, out, err = call(capsys, "--config", "quickstart.yaml")
    assert (code, out) == (1, "")
    assert "ZeroDivisionError" in err
    assert "bug of googlenet-train" in err


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path):
    command = [sys.executable, "-m", "googlenet_train", "config", "--defaults"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    with writer.stderr:
        assert writer.stderr.read() == ""
    assert writer.wait() == 0


def test_fresh_says_what_it_renames(capsys):
    help_of_fresh = " ".join(call(capsys, "--help")[1].partition("--fresh ")[2].split())
    assert help_of_fresh.startswith(
        "start over: an unfinished run of this config, or any in run.dir"
    )
    assert "a finished one keeps its folder" in help_of_fresh


# --- streams -------------------------------------------------------------------------------------

SAYS_NAMES = """
import json, sys
from googlenet_train import cli
def say(words):
    print(words[0])
    print(words[0], file=sys.stderr)
    print(json.dumps(words))
    return 0
cli.VERBS["config"] = say
sys.exit(cli.main(["config", "\U0001f600 \u0161"]))
"""


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "\U0001f600 \u0161"),
        ("latin-1", r"\U0001f600 \u0161"),
        ("cp1252", "\\U0001f600 \u0161"),
        ("ascii:strict", r"\U0001f600 \u0161"),
    ],
)
def test_what_a_stream_cannot_encode_is_escaped(encoding, shown):
    done = subprocess.run(
        [sys.executable, "-c", SAYS_NAMES],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    codec = encoding.partition(":")[0]
    text, as_json = done.stdout.decode(codec).splitlines()
    assert text == done.stderr.decode(codec).rstrip() == shown
    assert json.loads(as_json) == ["\U0001f600 \u0161"]


def test_a_stream_that_was_replaced_stays_as_it_is(monkeypatch):
    class Written(list):
        write = list.append

        def flush(self):
            pass

    out = Written()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", None)
    assert commands.main([]) == ExitCode.USAGE
    assert "".join(out) == commands.WELCOME


@pytest.mark.skipif(os.name == "nt", reason="Windows has other pipes")
def test_a_stream_that_cannot_be_set_is_no_error(tmp_path):
    """What was a file when Python began may be a pipe by now."""
    script = (
        "import os, sys\n"
        "from googlenet_train import cli\n"
        "reader, writer = os.pipe()\n"
        "os.dup2(writer, 1)\n"
        "code = cli.main([])\n"
        "os._exit(code)"
    )
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run([sys.executable, "-c", script], stdout=out, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (ExitCode.USAGE, b"")


# --- SIGTERM -------------------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGTERM")


@posix
@pytest.mark.parametrize("verb", [verb for verb in commands.VERBS if verb != "train"])
def test_sigterm_unwinds_what_is_no_run(verb, capsys, monkeypatch):
    cleaned = []

    def wait(words: list[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleaned.append(words)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a second one ends it
        return 0

    monkeypatch.setitem(commands.VERBS, verb, wait)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert call(capsys, verb, "x") == (ExitCode.SIGTERM, "", "\nstopped\n")
    assert cleaned == [["x"]]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@posix
def test_a_run_and_many_ranks_keep_sigterm_as_it_is(capsys, monkeypatch):
    seen = []

    def look(words: list[str]) -> int:
        seen.append(signal.getsignal(signal.SIGTERM))
        return 0

    for verb in ("train", "evaluate"):
        monkeypatch.setitem(commands.VERBS, verb, look)
    call(capsys, "train", "x")
    assert seen == [signal.SIG_DFL]
    call(capsys, "evaluate", "x")
    assert seen[1] is not signal.SIG_DFL
    monkeypatch.setenv("WORLD_SIZE", "2")
    call(capsys, "evaluate", "x")
    assert seen[2] is signal.SIG_DFL
    monkeypatch.delenv("WORLD_SIZE")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a parent's wish
    try:
        call(capsys, "evaluate", "x")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen[3] is signal.SIG_IGN


@posix
def test_sigterm_leaves_nothing_of_a_check_behind(tiny_folder):
    temporary = tiny_folder / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "googlenet_train", "check", "--config", "tiny.yaml"],
        cwd=tiny_folder,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(temporary.glob("googlenet-train-check-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.SIGTERM
    assert stderr.endswith("\nstopped\n")
    assert "Traceback" not in stderr
    assert list(temporary.glob("googlenet-train-check-*")) == []
