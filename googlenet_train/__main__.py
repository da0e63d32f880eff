"""`python -m googlenet_train` is the command `googlenet-train`."""

import sys

from googlenet_train.cli import main

if __name__ == "__main__":
    sys.exit(main())
