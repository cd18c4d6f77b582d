"""The job file as a typed value, and the quantities people write in it."""

from inlay.nas.job.budget import LIMIT_NAMES, Budget, BudgetLimit, parse_limit
from inlay.nas.job.model import Job, JobError
from inlay.nas.job.sections import (
    Cluster,
    Data,
    Distill,
    DistillText,
    Hardware,
    Recover,
    Scenario,
    Score,
    Solve,
    Source,
    Tracking,
    ValidateText,
    sources_by_field,
)
from inlay.nas.job.space import Alternative, Space
from inlay.nas.problems import Problem

__all__ = [
    "LIMIT_NAMES",
    "Alternative",
    "Budget",
    "BudgetLimit",
    "Cluster",
    "Data",
    "Distill",
    "DistillText",
    "Hardware",
    "Job",
    "JobError",
    "Problem",
    "Recover",
    "Scenario",
    "Score",
    "Solve",
    "Source",
    "Space",
    "Tracking",
    "ValidateText",
    "parse_limit",
    "sources_by_field",
]
