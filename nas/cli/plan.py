"""`inlay plan`: what a search will take, before it is started."""

from __future__ import annotations

from inlay.nas.cli.output import JobArgument, JsonOption, print_json, print_rich


def plan_command(job: JobArgument, as_json: JsonOption = False) -> None:
    """Show what a search will take: pieces, sizes, estimates."""
    from inlay.nas.job import Job

    loaded = Job.load(job)  # a wrong job is refused before torch is imported
    from inlay.nas.report.plan import plan_tables
    from inlay.nas.stages.plan import make_plan

    plan = make_plan(loaded)
    if as_json:
        print_json(plan)
    else:
        print_rich(*plan_tables(plan))
