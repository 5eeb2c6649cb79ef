"""Where the cells of a sweep run: in this process, in several, on a cluster.

A launcher takes tasks and a function, calls the function for each task in some process, and yields what became of
each as it finishes. It knows nothing of configurations or training, and imports the library that it stands on only
when it launches.
"""

from gradstab.launchers.build import LAUNCHERS, build_launcher
from gradstab.launchers.task import Done, Launcher, Task, Work

__all__ = ["LAUNCHERS", "Done", "Launcher", "Task", "Work", "build_launcher"]
