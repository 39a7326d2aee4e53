"""Planning: what the data and the machine suggest for each key that a task leaves open, and why."""

from medi3d.planning.plan import Plan, plan_task
from medi3d.planning.plan_file import read_plan, write_plan
from medi3d.planning.smaller import next_smaller
from medi3d.planning.trial import estimate_training_bytes

__all__ = ["Plan", "estimate_training_bytes", "next_smaller", "plan_task", "read_plan", "write_plan"]
