"""Why a job waits, in two kinds: what passes by itself, and what waits until somebody does something."""

from __future__ import annotations

import re

HELD_STATES = frozenset(("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"))
"""Slurm's words for jobs that it holds, whatever the reason."""


PASSES = (
    # Other jobs of the same people end, and then it starts: limits on what they run at once. Those on minutes of
    # running jobs (GrpCPURunMinutes) are among them, those on minutes that are used up are not.
    r"(Assoc|QOS)Grp\w*RunMinutes",
    r"Max\w*Per(User|Account)",
    r"ReqNodeNotAvail.*[Mm]aint",
)
"""What passes by itself though a pattern below would fit."""


CLOSED = r"PartitionDown|PartitionInactive"
"""Jobs start by themselves when the partition opens, which somebody has to do."""
RELEASE = "let it start: scontrol release {job}"
HELD = {
    r"launch failed|JobLaunchFailure": "see why its node could not start it (--failed), then scontrol release {job}",
    r"JobHeldAdmin": "ask the administrators why they hold it; they let it start with scontrol release {job}",
    r"JobHeldUser|[Hh]eld|JobHoldMaxRequeue|RequeueExitHold": RELEASE,
}
"""The reason of a hold -> how it ends; the first that fits counts."""


NEVER_STARTS = {
    # Time.
    r"MaxWallDuration|PartitionTimeLimit|AssociationTimeLimit|QOSTimeLimit|MinutesPerJob": "lower slurm.timeout_min",
    r"DeadLine": "take the deadline out of slurm.extra",
    # More of something than one job may have. Users' limits on all their jobs together are in PASSES.
    r"(Assoc|QOS)MaxCpuPer": "lower slurm.cpus or slurm.runs_per_job",
    r"(Assoc|QOS)MaxMem\w*Per|MaxMemPerLimit": "lower slurm.mem_gb or slurm.runs_per_job",
    r"(Assoc|QOS)MaxGRESPer": "lower slurm.gpus",
    r"(Assoc|QOS)Max\w*Per(Job|Node)": "ask for less: slurm.cpus, slurm.mem_gb, slurm.gpus, slurm.extra",
    r"QOSMin": "this QOS is for larger jobs: name another in slurm.qos, or ask for more of that",
    # A budget that is used up.
    r"(Assoc|QOS)Grp\w*Minutes|(Assoc|QOS)GrpWall|QOSUsageThreshold": "what was granted to this account or QOS is used "
    "up: ask for more, or name another in slurm.account or slurm.qos",
    # What is not allowed, or not there.
    r"InvalidAccount|AccountNotAllowed|[Aa]ccount not permitted": "name another slurm.account",
    r"InvalidQOS|QOSNotAllowed|QOS not permitted": "name another slurm.qos",
    r"BadConstraints": "no node has what is asked for: change slurm.constraint or slurm.extra",
    r"PartitionNodeLimit|PartitionConfig": "its nodes are down, or it takes no such jobs: change slurm.partition",
    r"ReqNodeNotAvail.*UnavailableNodes:\w": "those nodes are down or drained: ask when they come back, or change "
    "slurm.partition or slurm.constraint",
    r"ReservationDeleted|RequiresReservation|ReqResv": "name one that exists: slurm.extra = ['reservation=NAME']",
    r"DependencyNeverSatisfied": "mend what it waits for, which failed",
}
"""The reason of a job that never starts as it is -> what to change for another one; the first that fits counts."""


def fix_of(reason: str, state: str = "PENDING", job: str = "JOB") -> str:
    """Say what to do about a job that waits for ever; '' where that passes.

    The fix is a setting of gin files, or a command. `reason` and `state` are Slurm's words, `job` is the id to put into
    the fix. A reason that Slurm has learnt since passes by itself. Examples: 'QOSMaxJobsPerUserLimit' passes when
    others of this user's jobs end; 'QOSMaxWallDurationPerJobLimit' never does, and the fix is to lower
    slurm.timeout_min.
    """
    words = reason.replace("_", " ")  # some versions write blanks so
    if any(re.search(pattern, words) for pattern in PASSES):
        return ""
    again = ", then cancel this job (scancel {job}) and run the grid again"
    fixes = HELD | {pattern: change + again for pattern, change in NEVER_STARTS.items()}
    fixes[CLOSED] = "ask when the partition opens; the job then starts by itself"
    if state in HELD_STATES:
        fixes[""] = RELEASE
    fix = next((fix for pattern, fix in fixes.items() if re.search(pattern, words)), "")
    return fix.format(job=job)
