"""Whether several processes must shard the base, because all of it does not fit one card."""

from dataclasses import replace

from lora_chat.config.plan import Plan
from lora_chat.planning.process_layout import can_shard
from lora_chat.planning.settings_search import Candidate, PlanningProblem, choose_plan


def choose_sharding(plan: Plan, problem: PlanningProblem) -> bool:
    """Return whether a run fits only with a sharded base, for the processes of the problem's layout.

    On a CPU it never does, because each process has the whole base in main memory while it loads.
    """
    if problem.layout.count == 1 or problem.target.device == "cpu" or not can_shard(plan):
        return False
    return not _fits(plan, problem, sharded=False) and _fits(plan, problem, sharded=True)


def _fits(plan: Plan, problem: PlanningProblem, *, sharded: bool) -> bool:
    """Return whether the best settings fit."""
    problem = replace(problem, layout=replace(problem.layout, sharded=sharded))
    limit = problem.target.limit
    return Candidate(choose_plan(plan, problem, limit), problem).fits(limit)
