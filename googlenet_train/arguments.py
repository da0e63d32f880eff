"""The parser of every command line."""

import argparse
from typing import NoReturn

from googlenet_train.errors import ExitCode, UserError


class Parser(argparse.ArgumentParser):
    """As argparse's, but a mistake is a UserError (usage) like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help", ExitCode.USAGE)
