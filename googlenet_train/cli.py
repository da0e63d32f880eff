"""What a person types: the verbs, their flags, and how every ending becomes an exit code."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from googlenet_train import __version__, allocator, bare_folder, distributed
from googlenet_train.arguments import Parser
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.out_of_memory import is_out_of_memory

WELCOME = """\
googlenet-train trains GoogLeNet from one YAML file. For example:

  googlenet-train --config quickstart.yaml  ten kinds of clothes, in minutes
  googlenet-train photos/                   your own: a folder of class folders
  googlenet-train evaluate runs/quickstart  how good is it?

Every setting, with its reason: googlenet-train config --defaults
Every flag: googlenet-train --help
"""

# Where training or an evaluation of its own is short of it, it says more: see shortage.py.
_MORE_MEMORY = "End other programs that use the device, or take one with more (--device cpu)."
VERBS = ("train", "evaluate", "predict", "check", "data", "config")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        print(WELCOME, end="")
        return ExitCode.USAGE
    try:
        return int(_run(words))
    except UserError as error:
        _tell(error)
        if distributed.world_size() > 1 and error.exit_code == ExitCode.DISTRIBUTED:
            sys.stderr.flush()
            os._exit(error.exit_code)  # an orderly end would wait for the rank that is missing
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return ExitCode.SIGINT
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return ExitCode.DONE
    except OSError as error:  # those that a person can mend better are UserErrors by now
        _tell(distributed.as_user_error(error))
        return ExitCode.STORAGE
    except Exception as error:
        if is_out_of_memory(error):
            reason = (str(error).splitlines() or [""])[0][:200]
            _tell(UserError(f"out of memory. {_MORE_MEMORY} ({reason})", ExitCode.USAGE))
            return ExitCode.USAGE
        traceback.print_exc()
        print(
            f"error    this is a bug of googlenet-train {__version__}; the lines above show where",
            file=sys.stderr,
        )
        return ExitCode.BUG


def _tell(error: UserError) -> None:
    rank = distributed.rank()
    if rank == 0 or not error.shared:
        who = f"rank {rank}: " if rank else ""
        print(f"error    {who}{error}", file=sys.stderr)


def _run(words: list[str]) -> int:
    verb = words[0] if words[0] in VERBS else "train"
    rest = words[1:] if words[0] in VERBS else words
    if verb == "train" and words[0] != "train" and not words[0].startswith("-"):
        _refuse_unknown_verb(words[0])
    if verb in ("train", "evaluate", "check") and not {"-h", "--help"} & set(rest):
        allocator.keep_freed_memory()
    if verb == "train":
        return _train(rest)
    if verb == "evaluate":
        return _evaluate(rest)
    distributed.refuse_many_ranks(verb)
    if verb == "predict":
        return _predict(rest)
    if verb == "check":
        return _check(rest)
    if verb == "data":
        from googlenet_train import data_cli

        return data_cli.run(rest)
    return _config(rest)


def _refuse_unknown_verb(word: str) -> None:
    """The first word of a command line is a verb, an override (--config may come later), photos."""
    from difflib import get_close_matches

    if "=" in word or "/" in word or os.sep in word or Path(word).exists():
        return
    verbs = [repr(verb) for verb in get_close_matches(word, VERBS, n=1)]
    near = verbs or [f"the folder '{name}'" for name in bare_folder.near(Path(word))]
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UserError(
        f"{word!r} is no verb and no folder. {hint}The verbs are {', '.join(VERBS)}; without one "
        "it trains, and needs --config FILE or a folder of photos.",
        ExitCode.USAGE,
    )


def _train(words: list[str]) -> int:
    parser = Parser(
        prog="googlenet-train",
        usage="googlenet-train [train] --config FILE [--resume] [KEY=VALUE ...]\n"
        "       googlenet-train [train] PHOTOS/ [--resume] [KEY=VALUE ...]\n"
        "       googlenet-train evaluate|predict|check|data|config --help",
        description="Train GoogLeNet from one YAML file.",
        epilog="Every key and its reason: googlenet-train config --defaults. Exit codes: 0 done, "
        "1 a bug of ours, 2 usage or config, 3 data, 4 checkpoint, 5 NaN or infinity, 6 storage, "
        "7 distributed, 130 and 143 stopped by a signal, saved.",
    )
    parser.add_argument("--version", action="version", version=f"googlenet-train {__version__}")
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file, or the bare name of a shipped one"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on where the run stopped, or start it"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="rename an unfinished run of this config, start over"
    )
    parser.add_argument(
        "--allow-config-change",
        metavar="KEY",
        action="append",
        default=[],
        help="with --resume: accept that this setting differs",
    )
    parser.add_argument(
        "words",
        metavar="PHOTOS/ or KEY=VALUE",
        nargs="*",
        help="a folder of class folders, in place of --config; a setting, such as "
        "optimizer.lr=0.02",
    )
    given = parser.parse_intermixed_args(words)
    if given.resume and given.fresh:
        raise UserError("--resume and --fresh exclude each other. Leave one out", ExitCode.USAGE)
    if given.allow_config_change and not given.resume:
        raise UserError(
            "--allow-config-change belongs to --resume: a new run may have any settings",
            ExitCode.USAGE,
        )

    loaded = bare_folder.load(given.config, given.words)
    from googlenet_train import launch, signals

    signals.ignore_saves()
    with distributed.group(loaded.config.distributed.timeout):
        prepared = launch.prepare_ranks(
            loaded,
            resume=given.resume,
            fresh=given.fresh,
            allow=given.allow_config_change,
        )
        if prepared is None:
            return ExitCode.DONE
        if distributed.rank() == 0:
            launch.say("loading PyTorch…")
        from googlenet_train.fitting import fitted
        from googlenet_train.train import train

        prepared, line = fitted(prepared)
        if line is not None and distributed.rank() == 0:
            launch.say(f"memory   {line}")
        return train(prepared)


def _check(words: list[str]) -> int:
    parser = Parser(
        prog="googlenet-train check",
        usage="googlenet-train check --config FILE [--all] [--gpus 1,8] [--json] [KEY=VALUE ...]\n"
        "       googlenet-train check PHOTOS/ [--all] [--json] [KEY=VALUE ...]",
        description="Look at everything that a run needs, and take its first steps, without "
        "training or leaving anything behind. The exit code is 0 only if the run would start.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file, or the bare name of a shipped one"
    )
    parser.add_argument("--resume", action="store_true", help="check that a run can go on")
    parser.add_argument(
        "--all", action="store_true", help="decode every photo, compare all contents"
    )
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    more = parser.add_argument_group("more GPUs", "a table of what the run would take on them")
    more.add_argument("--gpus", metavar="1,8,64", type=_counts, help="how many")
    more.add_argument(
        "--images-per-second", metavar="N", type=_rate, help="of one GPU (default: of this device)"
    )
    more.add_argument(
        "--link", metavar="GBIT", type=_rate, help="between machines, Gbit/s (default: 25)"
    )
    more.add_argument(
        "--storage", metavar="MB", type=_rate, help="of the file system, MB/s (default: 2000)"
    )
    more.add_argument(
        "--failures", metavar="DAYS", type=_rate, help="between those of a machine (default: 30)"
    )
    parser.add_argument("words", metavar="PHOTOS/ or KEY=VALUE", nargs="*", help="as for training")
    given = parser.parse_intermixed_args(words)
    loaded = bare_folder.load(given.config, given.words)
    from googlenet_train.check import check
    from googlenet_train.scaling import Known

    known = Known(given.images_per_second, given.link, given.storage, given.failures)
    return check(
        loaded,
        resume=given.resume,
        everything=given.all,
        as_json=given.json,
        gpus=given.gpus or (),
        known=known,
    )


def _counts(text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,8,64")
    return [int(number) for number in numbers]


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _config(words: list[str]) -> int:
    parser = Parser(prog="googlenet-train config", description="Every key of a config file.")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "--defaults", action="store_true", help="YAML with every key, its default and its reason"
    )
    form.add_argument("--schema", action="store_true", help="JSON Schema, for editors")
    given = parser.parse_args(words)

    from googlenet_train import config_text

    print(config_text.schema_text() if given.schema else config_text.defaults_text(), end="")
    return ExitCode.DONE


def _find(saved: Sequence[str], which: str) -> None:
    """Refuse what is no run before torch is loaded."""
    from googlenet_train.runs import named_checkpoint

    for run in saved:
        named_checkpoint(Path(run), which)


def _saved_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="last|best|STEP",
        default="last",
        help="which of the run's checkpoints (default: the last that verifies)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="default: auto"
    )


def _evaluate(words: list[str]) -> int:
    parser = Parser(
        prog="googlenet-train evaluate",
        description="Evaluate a trained network on its validation images.",
    )
    parser.add_argument(
        "run", metavar="RUN", nargs="+", help="a run folder or a checkpoint; several: an ensemble"
    )
    parser.add_argument(
        "--weights",
        default="ema",
        choices=["raw", "ema", "both"],
        help="the last weights or their average (default: ema)",
    )
    parser.add_argument(
        "--crops", type=int, default=1, choices=[1, 10, 144], help="views of each image"
    )
    parser.add_argument("--data", metavar="SOURCE", help="other images than the run's data.val")
    parser.add_argument(
        "--compile",
        default="auto",
        choices=["yes", "no", "auto"],
        help="translate the network for this machine first (default: where it pays)",
    )
    _saved_run_arguments(parser)
    given = parser.parse_intermixed_args(words)

    _find(given.run, given.checkpoint)
    from googlenet_train.config import Distributed

    with distributed.group(Distributed().timeout):
        from googlenet_train.evaluate_run import evaluate_runs

        return evaluate_runs(
            given.run,
            weights=given.weights,
            crops=given.crops,
            source=given.data,
            which=given.checkpoint,
            kind=given.device,
            compile_it=given.compile,
            as_json=given.json,
        )


def _predict(words: list[str]) -> int:
    parser = Parser(
        prog="googlenet-train predict", description="The five likeliest classes of photos."
    )
    parser.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    parser.add_argument("photos", metavar="PHOTO", nargs="+", help="image files and folders")
    _saved_run_arguments(parser)
    given = parser.parse_intermixed_args(words)

    _find([given.run], given.checkpoint)
    from googlenet_train.predict import predict

    return predict(
        given.run,
        given.photos,
        which=given.checkpoint,
        kind=given.device,
        as_json=given.json,
    )
