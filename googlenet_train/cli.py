"""What a person types: which verb it means, and how every ending becomes an exit code."""

import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from googlenet_train import distributed
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine import signals
from googlenet_train.machine.out_of_memory import is_out_of_memory
from googlenet_train.verbs import bare_folder, check, config, data, evaluate, predict, train
from googlenet_train.version import __version__

WELCOME = """\
googlenet-train trains GoogLeNet from one YAML file. For example:

  googlenet-train --config quickstart.yaml  ten kinds of clothes, in minutes
  googlenet-train photos/                   your own: a folder of class folders
  googlenet-train evaluate runs/quickstart  how good is it?

Every setting, with its reason: googlenet-train config --defaults
Every flag: googlenet-train --help
"""

# Where training or an evaluation of its own is short of it, it says more: see run/shortage.py.
_MORE_MEMORY = "End other programs that use the device, or take one with more (--device cpu)."
# None of them loads PyTorch or reads a file before it has understood its words.
VERBS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "predict": predict.main,
    "check": check.main,
    "data": data.main,
    "config": config.main,
}
FOR_MANY_RANKS = ("train", "evaluate")  # under torchrun


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    _escape_what_a_stream_lacks()
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
    except KeyboardInterrupt as stop:
        print("\nstopped", file=sys.stderr)
        return ExitCode.SIGTERM if isinstance(stop, signals.Terminated) else ExitCode.SIGINT
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


def _escape_what_a_stream_lacks() -> None:
    """A file's or a class's name may hold what the terminal's encoding lacks: `\\U0001f600`, then.

    JSON is ASCII anyhow. A stream that somebody has put in place of the usual ones stays as it is.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):  # another file took its place, or it is closed
                stream.reconfigure(errors="backslashreplace")


def _tell(error: UserError) -> None:
    rank = distributed.rank()
    if rank == 0 or not error.shared:
        who = f"rank {rank}: " if rank else ""
        print(f"error    {who}{error}", file=sys.stderr)


def _run(words: list[str]) -> int:
    _refuse_empty(words)
    verb = words[0] if words[0] in VERBS else "train"
    rest = words[1:] if words[0] in VERBS else words
    if verb == "train" and words[0] != "train" and not words[0].startswith("-"):
        _refuse_unknown_verb(words[0])
    if verb not in FOR_MANY_RANKS:
        distributed.refuse_many_ranks(verb)
    # A run saves when it is told to stop. Of many ranks each may wait for the others in C code,
    # where a handler in Python would not be called: there the signal itself ends it.
    by_itself = verb == "train" or distributed.world_size() > 1
    with nullcontext() if by_itself else signals.terminable():
        return VERBS[verb](rest)


def _refuse_empty(words: list[str]) -> None:
    """A path that is empty would mean the current folder, a flag's its default."""
    for number, word in enumerate(words, 1):
        flag, sign, value = word.partition("=")
        if not word or (flag.startswith("--") and sign and not value):
            what = f"{flag}= has no value" if word else f"argument {number} is empty"
            raise UserError(
                f"{what}. Was it made of a shell variable that is not set? Give a value, or leave "
                "it out.",
                ExitCode.USAGE,
            )


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
