"""What a person is told where memory does not suffice: in one line, what to change."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from googlenet_train import distributed
from googlenet_train.config import Config
from googlenet_train.data import order
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine.out_of_memory import is_out_of_memory
from googlenet_train.run.session import Session


class EvaluationTooLarge(UserError):
    """Memory was short in an evaluation, which has changed nothing: the run can still be saved."""


def in_training(run: Session) -> AbstractContextManager[None]:
    """Raise UserError (usage), with what helps, where the batches of a step find no memory."""
    return _told(UserError, lambda: _of_training(run))


def in_evaluation(run: Session) -> AbstractContextManager[None]:
    """Raise EvaluationTooLarge, with what helps, where an evaluation finds no memory."""
    return _told(EvaluationTooLarge, lambda: _of_evaluation(run))


@contextmanager
def _told(kind: type[UserError], line: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise kind(line(), ExitCode.USAGE) from None


def _of_training(run: Session) -> str:
    config, parts = run.config, run.config.parts
    images = config.optimizer.batch_size // distributed.world_size() // parts
    line = (
        f"out of memory in a training step: {images} images of {run.launch.image_size(run.step)} "
        "px at once"
    )
    more = _more_parts(config)
    size = "data.image_size" if config.schedule.image_size is None else "schedule.image_size.to"
    if more is None:
        return f"{line}. Lower {size}, or optimizer.batch_size and optimizer.lr alike"
    less = "half" if more == 2 * parts else "less"
    line += (
        f". optimizer.accumulate={more} takes {less} of that and leaves the batch and the learning "
        f"rate as they are; a smaller {size} helps too"
    )
    if run.saved > 0:
        return f"{line}. {_go_on(f'optimizer.accumulate={more}')}"
    return f"{line}; optimizer.accumulate=auto finds out what fits"


def _more_parts(config: Config) -> int | None:
    """The number of parts that takes half of the memory, or the next to it; None for none."""
    mixes = bool(config.augment.mixup or config.augment.cutmix)
    batch, ranks = config.optimizer.batch_size, distributed.world_size()
    more = [n for n in order.possible_parts(batch, ranks, pairs=mixes) if n > config.parts]
    return next((n for n in more if n >= 2 * config.parts), more[-1] if more else None)


def _of_evaluation(run: Session) -> str:
    size, side = run.config.evaluate.batch_size, run.config.data.image_size
    line = f"out of memory in an evaluation: {size} images of {side} px at once. "
    if size == 1:
        return f"{line}Lower data.image_size"
    setting = f"evaluate.batch_size={size // 2}"
    line += f"{setting} takes half of that and gives the same result"
    return f"{line}. {_go_on(setting)}" if run.saved > 0 or run.step > 0 else line


def _go_on(setting: str) -> str:
    key = setting.partition("=")[0]
    return f"The checkpoints are whole: go on with --resume {setting} --allow-config-change {key}"
