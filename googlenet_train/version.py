"""The version of this program, which a checkpoint states too."""

__version__ = "0.1.0"
