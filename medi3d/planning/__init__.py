"""Planning: what the data and the machine suggest for each key that a task leaves open, and why."""

from medi3d.planning.plan import Plan, plan_task
from medi3d.planning.plan_file import read_plan, write_plan

__all__ = ["Plan", "plan_task", "read_plan", "write_plan"]
