"""A monitor for anybody's training loop: what gradstab measures, judges and records, of any ``nn.Module``."""

from gradstab.monitor.monitor import Monitor
from gradstab.monitor.watching import watch

__all__ = ["Monitor", "watch"]
