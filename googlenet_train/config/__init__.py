"""The settings of a run: their types and reasons, and YAML to them and back."""

from googlenet_train.config.schema import Config

__all__ = ["Config"]
