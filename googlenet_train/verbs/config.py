"""The verb `config`: every key of a config file."""

from googlenet_train.errors import ExitCode
from googlenet_train.verbs.arguments import Parser


def main(words: list[str]) -> int:
    """Run `googlenet-train config WORDS`."""
    parser = Parser(prog="googlenet-train config", description="Every key of a config file.")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "--defaults", action="store_true", help="YAML with every key, its default and its reason"
    )
    form.add_argument("--schema", action="store_true", help="JSON Schema, for editors")
    given = parser.parse_args(words)

    from googlenet_train.config.text import defaults_text, schema_text

    print(schema_text() if given.schema else defaults_text(), end="")
    return ExitCode.DONE
