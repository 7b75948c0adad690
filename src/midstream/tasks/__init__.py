"""Task sets: sources, splits, mixing."""

from midstream.tasks.files import file_tasks
from midstream.tasks.load import TasksConfig, TaskSourceConfig, load_tasks, register_tasks
from midstream.tasks.mix import TaskMix
from midstream.tasks.taskset import SPLITS, Draft, FiniteTaskSet, GeneratedTaskSet, TaskSet, check, split_of, take

__all__ = [
    "SPLITS",
    "Draft",
    "FiniteTaskSet",
    "GeneratedTaskSet",
    "TaskMix",
    "TaskSet",
    "TaskSourceConfig",
    "TasksConfig",
    "check",
    "file_tasks",
    "load_tasks",
    "register_tasks",
    "split_of",
    "take",
]
