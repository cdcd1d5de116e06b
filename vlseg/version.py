"""The version of the package; read by hatchling without importing vlseg."""

__version__ = "0.1.0"
