"""The verb `predict`: the likeliest classes of photos."""

from pathlib import Path

from googlenet_train.verbs.arguments import Parser, add_saved_run


def main(words: list[str]) -> int:
    """Run `googlenet-train predict WORDS`."""
    parser = Parser(
        prog="googlenet-train predict", description="The five likeliest classes of photos."
    )
    parser.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    parser.add_argument("photos", metavar="PHOTO", nargs="+", help="image files and folders")
    add_saved_run(parser)
    given = parser.parse_intermixed_args(words)

    from googlenet_train.run.runs import refuse_no_run

    refuse_no_run(Path(given.run), given.checkpoint)  # refused before PyTorch is loaded
    from googlenet_train.verbs.predict_photos import predict

    return predict(
        given.run,
        given.photos,
        which=given.checkpoint,
        kind=given.device,
        as_json=given.json,
    )
