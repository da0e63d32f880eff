"""The verb `evaluate`: how good a trained network is."""

from pathlib import Path

from googlenet_train import distributed
from googlenet_train.machine import allocator
from googlenet_train.verbs.arguments import Parser, add_saved_run


def main(words: list[str]) -> int:
    """Run `googlenet-train evaluate WORDS`."""
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
    add_saved_run(parser)
    given = parser.parse_intermixed_args(words)

    allocator.keep_freed_memory()
    from googlenet_train.config.running import Distributed
    from googlenet_train.run.runs import refuse_no_run

    for run in given.run:  # what is no run is refused before PyTorch is loaded
        refuse_no_run(Path(run), given.checkpoint)
    with distributed.group(Distributed().timeout):
        from googlenet_train.verbs.evaluate_runs import evaluate_runs

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
