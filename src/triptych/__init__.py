"""Fine-tune Qwen-VL models on samples with several images; the plan is exact before any pixel is decoded."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("triptych")
except PackageNotFoundError:  # a source tree on sys.path without an installation
    __version__ = "0+unknown"
