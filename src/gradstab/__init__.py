"""gradstab, the workbench for gradient stability in PyTorch."""

__version__ = "0.1.0"
