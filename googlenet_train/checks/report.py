"""What `check` found, line by line."""

from typing import NamedTuple

from googlenet_train.errors import ExitCode


class Line(NamedTuple):
    status: str  # ok, warning or problem
    what: str
    message: str
    exit_code: ExitCode = ExitCode.DONE


class Report:
    """The findings so far. Each is printed on stdout as soon as it is known, unless `quiet`."""

    def __init__(self, *, quiet: bool) -> None:
        self.lines: list[Line] = []
        self._quiet = quiet

    def ok(self, what: str, message: str) -> None:
        self._add(Line("ok", what, message))

    def warning(self, what: str, message: str) -> None:
        self._add(Line("warning", what, message))

    def problem(self, what: str, message: str, exit_code: ExitCode) -> None:
        self._add(Line("problem", what, message, exit_code))

    @property
    def exit_code(self) -> ExitCode:
        """That of the first problem."""
        codes = (line.exit_code for line in self.lines if line.status == "problem")
        return next(codes, ExitCode.DONE)

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        if not self._quiet:
            print(f"{line.status:<8} {line.what:<8} {line.message}", flush=True)
