"""The Python services of the Prime Spark fleet."""

__version__ = "0.1.0"
