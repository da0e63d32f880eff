"""GoogLeNet ("Going Deeper with Convolutions", 2014), trained from one YAML file."""

__version__ = "0.1.0"
