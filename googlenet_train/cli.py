"""What a person types: the verbs, their flags, and how every ending becomes an exit code."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from googlenet_train import __version__
from googlenet_train.arguments import Parser
from googlenet_train.errors import ExitCode, UserError

WELCOME = """\
googlenet-train trains GoogLeNet from one YAML file. For example:

  googlenet-train --config quickstart.yaml  ten kinds of clothes, in minutes
  googlenet-train --config folder.yaml      your own: photos/train, photos/val
  googlenet-train evaluate runs/quickstart  how good is it?

Every setting, with its reason: googlenet-train config --defaults
Every flag: googlenet-train --help
"""

VERBS = ("train", "evaluate", "predict", "data", "config")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        print(WELCOME, end="")
        return ExitCode.USAGE
    try:
        return int(_run(words))
    except UserError as error:
        print(f"error    {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return ExitCode.SIGINT
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return ExitCode.DONE
    except OSError as error:  # those that a person can mend better are UserErrors by now
        where = f"{error.filename}: " if error.filename is not None else "storage: "
        print(f"error    {where}{error.strerror or error}", file=sys.stderr)
        return ExitCode.STORAGE
    except Exception:
        traceback.print_exc()
        print(
            f"error    this is a bug of googlenet-train {__version__}; the lines above show where",
            file=sys.stderr,
        )
        return ExitCode.BUG


def _run(words: list[str]) -> int:
    verb = words[0] if words[0] in VERBS else "train"
    rest = words[1:] if words[0] in VERBS else words
    if verb == "train" and words[0] != "train" and not words[0].startswith("-"):
        _refuse_unknown_verb(words[0])
    if verb == "train":
        return _train(rest)
    if verb == "evaluate":
        return _evaluate(rest)
    if verb == "predict":
        return _predict(rest)
    if verb == "data":
        from googlenet_train import data_cli

        return data_cli.run(rest)
    return _config(rest)


def _refuse_unknown_verb(word: str) -> None:
    from difflib import get_close_matches

    if "=" in word:  # an override; --config may come after it
        return
    near = get_close_matches(word, VERBS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"{word!r} is no verb. {hint}The verbs are {', '.join(VERBS)}; without one it trains, and "
        "needs --config FILE.",
        ExitCode.USAGE,
    )


def _train(words: list[str]) -> int:
    parser = Parser(
        prog="googlenet-train",
        usage="googlenet-train [train] --config FILE [--resume] [KEY=VALUE ...]\n"
        "       googlenet-train evaluate|predict|data|config --help",
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
        "overrides", metavar="KEY=VALUE", nargs="*", help="a setting, such as optimizer.lr=0.02"
    )
    given = parser.parse_intermixed_args(words)
    if given.config is None:
        raise UserError(
            "which config? Pass --config FILE, or try --config quickstart.yaml", ExitCode.USAGE
        )
    if given.resume and given.fresh:
        raise UserError("--resume and --fresh exclude each other. Leave one out", ExitCode.USAGE)
    if given.allow_config_change and not given.resume:
        raise UserError(
            "--allow-config-change belongs to --resume: a new run may have any settings",
            ExitCode.USAGE,
        )

    from googlenet_train import config_file, launch, signals

    signals.ignore_saves()
    prepared = launch.prepare(
        config_file.load(given.config, given.overrides),
        resume=given.resume,
        fresh=given.fresh,
        allow=given.allow_config_change,
    )
    if prepared is None:
        return ExitCode.DONE
    launch.say("loading PyTorch…")
    from googlenet_train.train import train

    return train(prepared)


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
    _saved_run_arguments(parser)
    given = parser.parse_intermixed_args(words)

    _find(given.run, given.checkpoint)
    from googlenet_train.evaluate_run import evaluate_runs

    return evaluate_runs(
        given.run,
        weights=given.weights,
        crops=given.crops,
        source=given.data,
        which=given.checkpoint,
        kind=given.device,
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
