"""What Slurm's reasons for waiting mean: whether it passes, and what helps where it does not."""

from __future__ import annotations

import pytest

from bench.launch.slurm.reasons import fix_of

RESOURCES = ("BB", "Billing", "Cpu", "Energy", "GRES", "License", "Memory", "Node", "Unknown")
PASSES = [
    *("None", "", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit", "Licenses", "Cleaning"),
    *("Prolog", "Reservation", "NodeDown", "FrontEndDown", "FedJobLock", "SchedDefer", "BurstBufferStageIn"),
    *("QOSJobLimit", "QOSResourceLimit", "AssociationJobLimit", "AssociationResourceLimit", "Constraints"),
    *("QOSMaxJobsPerUserLimit", "QOSMaxSubmitJobPerUserLimit", "AssocMaxJobsLimit", "AssocMaxSubmitJobLimit"),
    *("AssocGrpCpuLimit", "AssocGrpJobsLimit", "AssocGrpSubmitJobsLimit", "QOSGrpNodeLimit", "QOSGrpGRES"),
    *("AssocGrpCPURunMinutesLimit", "QOSGrpMemoryRunMinutes", "AssocGrpGRESRunMinutes"),
    *(f"Max{resource}PerAccount" for resource in (*RESOURCES, "Jobs", "SubmitJobs")),
    *(f"QOSMax{resource}PerUser" for resource in RESOURCES),
    *("QOSMaxCpuPerUserLimit", "QOSMaxNodePerUserLimit"),
    *("ReqNodeNotAvail", "ReqNodeNotAvail, Reserved for maintenance", "ReqNodeNotAvail, UnavailableNodes:"),
    "ReqNodeNotAvail,_Reserved_for_maintenance",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
    "SomethingThatSlurmLearntSince",
]
NEEDS = {
    "scontrol release 7_3": [
        *("JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue", "JobLaunchFailure", "launch failed requeued held"),
        *("launch_failed_requeued_held", "job requeued in held state"),
    ],
    "slurm.timeout_min": [
        *("QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit", "PartitionTimeLimit", "QOSTimeLimit"),
        *("AssociationTimeLimit", "AssocMaxCpuMinutesPerJobLimit", "QOSMaxGRESMinutesPerJob"),
    ],
    "slurm.cpus": ["AssocMaxCpuPerJobLimit", "QOSMaxCpuPerJobLimit", "QOSMaxCpuPerNode", "AssocMaxCpuPerNode"],
    "slurm.mem_gb": ["AssocMaxMemPerJob", "QOSMaxMemoryPerJob", "QOSMaxMemoryPerNode", "MaxMemPerLimit"],
    "slurm.gpus": ["AssocMaxGRESPerJob", "QOSMaxGRESPerJob", "QOSMaxGRESPerNode", "QOSMaxBillingPerJob"],
    "slurm.account": ["InvalidAccount", "AccountNotAllowed", "AssocGrpCPUMinutesLimit", "QOSGrpWallLimit"],
    "slurm.qos": ["InvalidQOS", "QOSNotAllowed", "QOSMinGRES", "QOSMinCpuNotSatisfied", "QOSUsageThreshold"],
    "slurm.constraint": ["BadConstraints", "ReqNodeNotAvail, UnavailableNodes:n[1-3]"],
    "slurm.partition": ["PartitionNodeLimit", "PartitionConfig"],
    "starts by itself": ["PartitionDown", "PartitionInactive"],
    "slurm.extra": ["ReservationDeleted", "DeadLine", "QOSMaxLicensePerJob", "AssocMaxNodePerJobLimit"],
    "scancel 7_3": ["DependencyNeverSatisfied"],
}


@pytest.mark.parametrize("reason", PASSES)
def test_what_passes_by_itself_needs_nobody(reason: str) -> None:
    assert fix_of(reason) == ""


@pytest.mark.parametrize(("fix", "reason"), [(fix, reason) for fix, reasons in NEEDS.items() for reason in reasons])
def test_what_never_passes_comes_with_its_fix(fix: str, reason: str) -> None:
    told = fix_of(reason, "PENDING", "7_3")
    assert fix in told and "{" not in told


@pytest.mark.parametrize("state", ["REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"])
def test_a_state_that_is_a_hold_needs_a_release_whatever_the_reason(state: str) -> None:
    assert "scontrol release 8_0" in fix_of("None", state, "8_0")
    assert "slurm.timeout_min" in fix_of("PartitionTimeLimit", state)
