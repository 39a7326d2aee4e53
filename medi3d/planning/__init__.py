"""Planning: what the data and the machine suggest for each key that a task leaves open, and why."""

from medi3d.planning.plan import Plan, plan_task

__all__ = ["Plan", "plan_task"]
