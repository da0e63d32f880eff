"""The verb `train`, which is also what no verb means."""

from googlenet_train import distributed
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine import allocator
from googlenet_train.verbs import bare_folder
from googlenet_train.verbs.arguments import Parser, add_config
from googlenet_train.version import __version__


def main(words: list[str]) -> int:
    """Run `googlenet-train [train] WORDS`."""
    parser = Parser(
        prog="googlenet-train",
        usage="googlenet-train [train] --config FILE [--resume] [KEY=VALUE ...]\n"
        "       googlenet-train [train] PHOTOS/ [--resume] [KEY=VALUE ...]\n"
        "       googlenet-train evaluate|predict|check|data|config --help",
        description="Train GoogLeNet from one YAML file.",
        epilog="Every key and its reason: googlenet-train config --defaults. Exit codes: 0 done, "
        "1 a bug of ours, 2 usage or config, 3 data, 4 checkpoint, 5 NaN or infinity, 6 storage, "
        "7 distributed, 130 and 143 stopped by a signal (saved, once the network is built).",
    )
    parser.add_argument("--version", action="version", version=f"googlenet-train {__version__}")
    add_config(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on where the run stopped, or start it"
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start over: an unfinished run of this config, or any in run.dir, is renamed (a "
        "finished one keeps its folder, and the new one gets a number)",
    )
    parser.add_argument(
        "--allow-config-change",
        metavar="KEY",
        action="append",
        default=[],
        help="with --resume: accept that this setting differs",
    )
    given = parser.parse_intermixed_args(words)
    if given.resume and given.fresh:
        raise UserError("--resume and --fresh exclude each other. Leave one out", ExitCode.USAGE)
    if given.allow_config_change and not given.resume:
        raise UserError(
            "--allow-config-change belongs to --resume: a new run may have any settings",
            ExitCode.USAGE,
        )

    allocator.keep_freed_memory()
    loaded = bare_folder.load(given.config, given.words)
    from googlenet_train.machine import signals
    from googlenet_train.run import launch

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
        from googlenet_train.checks.fitting import fitted
        from googlenet_train.train import train

        prepared, line = fitted(prepared)
        if line is not None and distributed.rank() == 0:
            launch.say(f"memory   {line}")
        return train(prepared)
