"""Training: one loop on accelerate for both kinds of task, its losses, schedule, checkpoints and run folder."""

from medi3d.train.loop import train_task

__all__ = ["train_task"]
