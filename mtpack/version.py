"""The version of mtpack: one line, read by the package, by manifests and by the build."""

__version__ = "0.1.0"
