"""The parser of every command line, and the flags that several verbs have."""

import argparse
from typing import NoReturn

from googlenet_train.errors import ExitCode, UserError


class Parser(argparse.ArgumentParser):
    """As argparse's, but a mistake is a UserError (usage) like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help", ExitCode.USAGE)


class _Once(argparse.Action):
    """Argparse would take the last of several, and never say so."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice. Leave one out")
        setattr(namespace, self.dest, values)


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config FILE`, or a folder of photos in its place, and settings: see `bare_folder.load`."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        action=_Once,
        help="a YAML file, or the bare name of a shipped one",
    )
    parser.add_argument(
        "words",
        metavar="PHOTOS/ or KEY=VALUE",
        nargs="*",
        help="a folder of class folders, in place of --config; a setting, such as "
        "optimizer.lr=0.02",
    )


def add_saved_run(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint of a RUN, on what device, and how to print."""
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
