"""The verb `data`: what can be done with images before a network sees them."""

import importlib
from difflib import get_close_matches

from googlenet_train.errors import ExitCode, UserError

# Each is a module with `main(words) -> int`, imported only when it is asked for.
VERBS = {
    "show": ("data_show", "a picture of augmented views and their boxes"),
    "index": ("data_index", "scan a source, keep its index"),
    "pack": ("data_pack", "class folders into tar shards"),
    "verify": ("data_verify", "read and decode every image"),
    "prepare": ("data_prepare", "lay out ImageNet or Imagenette"),
}


def main(words: list[str]) -> int:
    """Run `googlenet-train data WORDS`."""
    if not words or words[0] in ("-h", "--help"):
        print("usage: googlenet-train data VERB --help\n")
        for verb, (_, what) in VERBS.items():
            print(f"  {verb:<8} {what}")
        return ExitCode.DONE if words else ExitCode.USAGE
    if words[0] not in VERBS:
        near = get_close_matches(words[0], VERBS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{words[0]!r} is no verb of `data`.{hint} The verbs are {', '.join(VERBS)}.",
            ExitCode.USAGE,
        )
    module = importlib.import_module(f"googlenet_train.verbs.{VERBS[words[0]][0]}")
    return int(module.main(words[1:]))
