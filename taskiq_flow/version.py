"""The version of this package, as it was installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("taskiq-flow")
except PackageNotFoundError:  # imported from a checkout that is not installed
    __version__ = "unknown"
