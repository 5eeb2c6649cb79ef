"""``python -m gradstab`` is the same program as ``gradstab``."""

from gradstab.cli import entry_point

if __name__ == "__main__":
    entry_point()
