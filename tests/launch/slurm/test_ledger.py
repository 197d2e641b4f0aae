"""The ledger of submissions, what Slurm's answers mean, what is refused: with programs that stand in for Slurm's."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from bench import grid
from bench.errors import InputError
from bench.launch.slurm import client, ledger, limits, sbatch, submit
from bench.launch.slurm.assignment import Assignment
from bench.launch.slurm.client import JobState, SlurmError
from bench.launch.slurm.ledger import Submission
from bench.planning.gin_files import shipped_gin
from bench.planning.plan import make_plan
from bench.specs.cluster import Cluster
from bench.store.store import Store
from tests import tiny_grid
from tests.launch.slurm.conftest import SCONTROL, SINFO, Fake

# ------------------------------------------------------------------------------------------------------ the ledger


def test_a_submission_is_noted_before_and_completed_after(tmp_path: Path) -> None:
    made = ledger.note(tmp_path, "image", "--gin image.gin", "finetune", worklist="a", generation=1, jobs=3)
    assert ledger.submissions(tmp_path, "image") == [made]
    assert (made.job_id, made.element(0)) == (None, None)
    assert made.name == f"bench-image-finetune-{made.token}"
    ledger.complete(tmp_path, made, "17")
    (noted,) = ledger.submissions(tmp_path)
    assert (noted.job_id, noted.element(2)) == ("17", "17_2")
    assert (noted.worklist, noted.generation, noted.elements, noted.runs_stages) == ("a", 1, 3, True)
    assert ledger.submissions(tmp_path, "text") == []
    ledger.forget(tmp_path, made)
    assert ledger.submissions(tmp_path) == []


def test_submissions_come_oldest_first_and_by_different_names(tmp_path: Path) -> None:
    made = []
    for _ in range(10):  # within the same second, which the token begins with
        made.append(ledger.note(tmp_path, "a", ""))
        time.sleep(0.002)
    assert ledger.submissions(tmp_path) == made
    assert len({one.name for one in made}) == 10


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    made = ledger.note(tmp_path, "image", "--gin image.gin")
    path = ledger.folder(tmp_path) / "submissions" / f"{made.token}.json"
    for text in ("", "{", "{}", json.dumps({"grid": "image", "name": "x", "job_id": None, "tasks": 3, "time": 0})):
        path.write_text(text)
        with pytest.raises(InputError, match=path.name):
            ledger.submissions(tmp_path)


def test_a_submission_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    facts = {"grid": "image", "name": "bench-image-0", "job_id": "5", "time": 1.0, "source": ""}
    path = ledger.folder(tmp_path) / "submissions" / "00000001.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**facts, "tasks": [["a", "b"], ["c"]]}))
    (read,) = ledger.submissions(tmp_path)
    assert (read.tasks, read.elements, read.runs_stages) == ((("a", "b"), ("c",)), 2, True)
    path.write_text(json.dumps({**facts, "tasks": []}))  # that of the tables
    (read,) = ledger.submissions(tmp_path)
    assert (read.elements, read.runs_stages) == (1, False)


def test_an_id_that_was_never_noted_is_found_by_name() -> None:
    name = "bench-image-" + "0" * 16
    lost = Submission(grid="image", name=name, job_id=None, time=0.0, source="", worklist="a", token="0" * 16)
    queued = {"9_0": JobState("RUNNING", name=lost.name), "9_1": JobState("PENDING", name=lost.name)}
    (submission,) = ledger.identified([lost], queued)
    assert submission.element(1) == "9_1"
    assert ledger.identified([lost], {"9_0": JobState("RUNNING", name="bench-image-1")}) == [lost]


def test_what_slurm_does_not_know_is_gone_and_never_live(tmp_path: Path) -> None:
    made = ledger.note(tmp_path, "image", "--gin image.gin", worklist="a", jobs=2)
    assert ledger.element_state(made, 0, {}).state == ledger.UNSUBMITTED
    made = ledger.complete(tmp_path, made, "5")
    queued = {"5_0": JobState("RUNNING", name=made.name), "5_1": JobState("RUNNING", name="somebody's")}
    assert ledger.element_state(made, 0, queued).live
    assert ledger.element_state(made, 1, queued).state == client.GONE  # ids began anew
    assert not ledger.element_state(made, 1, queued).live
    assert not JobState("PENDING", "DependencyNeverSatisfied").live


def _submit(root: Path, log: Path) -> None:
    with ledger.submitting(root):
        with log.open("a") as file:
            file.write("in\n")
        time.sleep(0.05)
        with log.open("a") as file:
            file.write("out\n")


def test_one_process_submits_at_a_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_submit, args=(tmp_path, log)) for _ in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert log.read_text().split() == ["in", "out"] * 5


def _die_submitting(root: Path) -> None:
    with ledger.submitting(root):
        os._exit(1)


def test_a_turn_that_ends_or_is_taken_while_another_process_looks_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ledger.submitting(tmp_path), ledger.submitting(tmp_path)
    order = []

    def look(owner: object, path: Path) -> bool:
        order.append(path.name)
        if path.name == "000001.json":  # the first one's turn ends and the second one takes its own, unseen
            first.__exit__(None, None, None)
            second.__enter__()
            return False
        second.__exit__(None, None, None)
        return True

    monkeypatch.setattr(ledger, "owner_alive", look)
    first.__enter__()
    with ledger.submitting(tmp_path):
        assert order == ["000001.json", "000002.json"]
        assert (ledger.folder(tmp_path) / "submitting" / "000003.json").exists()


def test_a_process_does_not_wait_for_itself_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def full(source: Path, target: Path) -> None:
        if str(target).endswith(".end.json"):
            raise OSError(28, "No space left on device")
        link(source, target)

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(ledger, "owner_alive", lambda owner, path: pytest.fail("its own turn is over"))
    for _ in range(2):
        with ledger.submitting(tmp_path):
            pass


def test_a_damaged_note_of_who_is_submitting_is_named(tmp_path: Path) -> None:
    path = ledger.folder(tmp_path) / "submitting" / "000001.json"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(InputError, match=r"000001\.json"), ledger.submitting(tmp_path):
        pass


def test_a_submitter_that_died_is_not_waited_for(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_die_submitting, args=(tmp_path,))
    process.start()
    process.join(60)
    assert list((ledger.folder(tmp_path) / "submitting").iterdir())
    began = time.monotonic()
    with ledger.submitting(tmp_path):
        pass
    assert time.monotonic() - began < 5


# ----------------------------------------------------------------------------------------------------- asking Slurm


def _names(*ages: float) -> list[str]:
    return [f"bench-image-{int(time.time() - age):08x}{number:08x}" for number, age in enumerate(ages)]


def test_queue_reads_squeue_and_what_only_sacct_remembers(fake: Fake) -> None:
    ours, other = _names(60), "bench-image-other"
    now = int(time.time())
    fake(
        "squeue",
        f"7_0|{ours[0]}|RUNNING|{now}|{now + 5}|None\n7_1|{ours[0]}|PENDING|{now}|N/A|Dependency\n"
        f"7_2|{ours[0]}|PENDING|{now}|{now + 99}|BeginTime\n8|{other}|RUNNING|{now}|{now}|None\n",
    )
    fake(
        "sacct",
        f"7_0|{ours[0]}|PENDING|{now}|{now}\n7_4|{ours[0]}|RUNNING|{now}|{now}\n"
        f"7_5|{ours[0]}|CANCELLED by 1000|{now}|{now}\n"
        f"7_[6-8,10%4]|{ours[0]}|CANCELLED by 0|{now}|Unknown\n7_11|{ours[0]}|OUT_OF_MEMORY|{now}|{now}\n",
    )
    states = client.queue(ours)
    assert states["7_0"] == JobState("RUNNING", "", now + 5, ours[0])
    assert states["7_1"] == JobState("PENDING", "Dependency", None, ours[0])
    assert states["7_2"].start == now + 99
    assert states["7_5"].state == "CANCELLED"
    assert states["7_11"].state == "OUT_OF_MEMORY"
    assert {name for name, state in states.items() if not state.live} == {"7_5", "7_6", "7_7", "7_8", "7_10", "7_11"}
    assert "8" not in states
    assert "7_4" not in states  # of whose end the accounting never heard


def test_a_job_of_our_name_from_before_ours_is_not_ours(fake: Fake) -> None:
    (ours,) = _names(60)
    fake("squeue", f"7_0|{ours}|RUNNING|{int(time.time()) - 86400}|N/A|None\n")
    fake("sacct")
    assert client.queue([ours]) == {}


def test_times_may_be_dates(fake: Fake) -> None:
    (ours,) = _names(60)
    date = time.strftime("%Y-%m-%dT%H:%M:%S")
    fake("squeue", f"7_0|{ours}|RUNNING|{date}|{date}|None\n")
    fake("sacct")
    assert client.queue([ours])["7_0"].start == pytest.approx(time.time(), abs=120)


def test_without_accounting_the_queue_is_still_read(fake: Fake) -> None:
    (ours,) = _names(60)
    fake("squeue", f"7_0|{ours}|COMPLETED|{int(time.time())}|N/A|None\n")
    fake("sacct", status=1, error="Slurm accounting storage is disabled")
    assert client.queue([ours])["7_0"].state == "COMPLETED"


def test_a_queue_that_cannot_be_asked_is_not_an_empty_one(fake: Fake) -> None:
    fake("sacct")
    fake("squeue", status=1, error="slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    with pytest.raises(SlurmError, match="Unable to contact"):
        client.queue(_names(60))
    assert client.queue([]) == {}


def test_the_queue_is_asked_once_and_by_name(fake: Fake) -> None:
    fake("sacct")
    log = fake("squeue")
    names = _names(60, 70, 80)
    client.queue(names)
    (call,) = log.read_text().splitlines()
    assert f"--name={','.join(names)}" in call


def test_slurms_programs_get_none_of_a_surrounding_jobs_variables(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    leaking = ("SLURM_CPU_BIND", "SBATCH_PARTITION", "SRUN_CPUS_PER_TASK", "SQUEUE_FORMAT", "SACCT_FORMAT", "PMIX_RANK")
    for name in leaking:
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/other/slurm.conf")
    fake("sacct")
    fake("squeue")
    client.queue(_names(60))
    environment = (tmp_path / "programs" / "squeue.env").read_text()
    assert "SLURM_CONF=/etc/other/slurm.conf" in environment
    assert not [name for name in leaking if f"{name}=" in environment]


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"timeout_min": 3, "signal_delay_s": 90}, ["timeout_min", "above 3 minutes", "signal_delay_s"]),
        ({"timeout_min": "01:00:00"}, ["timeout_min", "whole number"]),
        ({"timeout_min": 0}, ["timeout_min", "at least 1"]),
        ({"runs_per_job": 0}, ["runs_per_job"]),
        ({"gpus": -1}, ["gpus"]),
        ({"mem_gb": 0}, ["mem_gb"]),
        ({"partition": " "}, ["partition"]),
        ({"signal": "TERM"}, ["signal", "USR2"]),
        ({"extra": ("--exclude=n1",)}, ["extra", "--exclude=n1"]),
        ({"extra": ("dependency=afterok:1",)}, ["extra", "dependency"]),
        ({"extra": ("time=5",)}, ["slurm.timeout_min"]),
        ({"extra": ("no-requeue",)}, ["extra", "no-requeue"]),
    ],
)
def test_settings_that_no_cluster_can_serve(settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        Cluster(**settings)  # type: ignore[arg-type]
    assert all(word in str(refused.value) for word in words)


def test_the_limit_just_above_what_is_needed_is_accepted() -> None:
    assert Cluster(timeout_min=4, signal_delay_s=120).timeout_min == 4
    assert Cluster(extra=("exclusive", "exclude=n[1-2]")).options == {"exclusive": True, "exclude": "n[1-2]"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"partition": "mian"}, ["mian", "Did you mean 'main'", "long"]),
        ({"partition": "main,nope"}, ["nope"]),
        ({"gpus": 3}, ["slurm.gpus = 3", "main", "2"]),
        ({"gpus": 5, "partition": "long"}, ["slurm.gpus = 5", "4"]),
        ({"cpus": 6, "runs_per_job": 3}, ["18 CPUs", "16"]),
        ({"mem_gb": 70.0}, ["slurm.mem_gb = 70", "62.5"]),
        ({"timeout_min": 1441}, ["slurm.timeout_min = 1441", "1440"]),
        ({"extra": ("gres=gpu:5",)}, ["gres=gpu:5", "slurm.gpus = 0"]),
        ({"gpus": 1, "extra": ("gres=tmp:5",)}, ["gres=tmp:5", "slurm.gpus = 1"]),
    ],
)
def test_what_this_cluster_cannot_serve(
    settings: dict[str, object], words: list[str], cluster: Fake, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        limits.check(Cluster(**settings), 1, {"--store": tmp_path})  # type: ignore[arg-type]
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize(
    "settings", [{}, {"gpus": 2}, {"partition": "long", "gpus": 4, "timeout_min": 10**6}, {"partition": "main,long"}]
)
def test_what_this_cluster_can_serve(settings: dict[str, object], cluster: Fake, tmp_path: Path) -> None:
    limits.check(Cluster(**settings), 1, {})  # type: ignore[arg-type]


def test_without_slurm_the_way_out_is_named(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    with pytest.raises(InputError, match=r"no sbatch on the PATH.*--launcher local"):
        limits.check(Cluster(), 1, {})


def test_a_cluster_without_a_default_partition(cluster: Fake) -> None:
    cluster("scontrol", SCONTROL.replace("YES", "NO"))
    with pytest.raises(InputError, match="no default partition"):
        limits.check(Cluster(), 1, {})


def test_threads_need_as_many_cpus(cluster: Fake) -> None:
    with pytest.raises(InputError, match=r"slurm.cpus = 1.*grid.threads = 2"):
        limits.check(Cluster(), 2, {})


def test_sbatchs_own_words_are_shown(cluster: Fake) -> None:
    words = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    cluster("sbatch", status=1, error=words)
    with pytest.raises(InputError, match="Invalid account or account/partition"):
        limits.check(Cluster(), 1, {})


def test_nodes_that_are_down_are_no_mistake(cluster: Fake) -> None:
    cluster("sbatch", status=1, error="allocation failure: Requested node configuration is not available")
    assert "not available" in "".join(limits.check(Cluster(partition="long"), 1, {}))
    with pytest.raises(InputError, match="not available"):  # though all nodes are there
        limits.check(Cluster(), 1, {})


def test_gpus_that_no_stage_would_use_are_told(cluster: Fake) -> None:
    assert "1 of each job stay idle" in "".join(limits.check(Cluster(gpus=2), 1, {}))
    assert limits.check(Cluster(gpus=2, runs_per_job=3), 1, {}) == []


def test_a_folder_in_memory_is_refused_where_there_are_other_machines(
    cluster: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(limits, "_file_system", lambda folder: "tmpfs")
    with pytest.raises(InputError, match=r"--store .*memory"):
        limits.check(Cluster(), 1, {"--store": tmp_path})
    monkeypatch.setattr(limits, "_file_system", lambda folder: "ext4")
    assert "--data" in "".join(limits.check(Cluster(), 1, {"--data": tmp_path}))
    monkeypatch.setattr(limits, "_file_system", lambda folder: "nfs4")
    assert limits.check(Cluster(), 1, {"--data": tmp_path}) == []
    monkeypatch.setattr(limits, "_file_system", lambda folder: "tmpfs")
    monkeypatch.setattr("platform.node", lambda: "n1.cluster")
    cluster("sinfo", SINFO.splitlines()[0] + "\n")
    assert limits.check(Cluster(), 1, {"--store": tmp_path}) == []


@pytest.mark.parametrize("name", ["runs%j", "a\\b", "a\nb"])
def test_a_path_that_slurm_would_rewrite_is_refused(name: str, cluster: Fake, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Name a folder without it"):
        limits.check(Cluster(), 1, {"--store": tmp_path / name})


def test_the_file_system_of_a_folder_that_is_not_there_yet() -> None:
    assert limits._file_system(Path("/proc/nothing/here")) == "proc"


def test_the_limit_of_an_array_is_slurms(cluster: Fake) -> None:
    assert limits.array_size(Cluster()) == 1001
    cluster("scontrol", "MaxArraySize            = 11\n")
    assert limits.array_size(Cluster()) == 11


def test_what_the_accounting_lets_be_queued_limits_an_array(fake: Fake) -> None:
    config = "ClusterName = ours\nMaxArraySize            = 1001\nAccountingStorageEnforce = associations,limits\n"
    config += "PartitionName=main Default=YES QoS=N/A\nPartitionName=long QoS=N/A\nPartitionName=few QoS=tight\n"
    fake("scontrol", config)
    program = fake("sacctmgr").with_name("sacctmgr")
    tables = {"user": "lab", "assoc": "|normal|50|\nlong||7|\n", "qos": "normal|||\ntight|3|20|\n"}
    cases = "".join(f"{name}) printf '{text}';;\n" for name, text in tables.items())
    program.write_text(f'#!/bin/sh\ncase "$4" in\n{cases}esac\n'.replace("'lab'", "'lab\\n'"))
    assert limits.array_size(Cluster()) == 50
    assert limits.array_size(Cluster(partition="long")) == 7
    assert limits.array_size(Cluster(qos="tight")) == limits.array_size(Cluster(partition="few")) == 3
    fake("scontrol", config.replace(",limits", ""))  # what is set there, and nobody enforces
    assert limits.array_size(Cluster()) == 1001
    fake("scontrol", config)
    fake("sacctmgr", status=1)
    assert limits.array_size(Cluster()) == 1001


def test_indices_as_slurm_writes_them() -> None:
    assert sbatch._ranges([0]) == "0"
    assert sbatch._ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


# ------------------------------------------------------------------------------------------------------- gin files


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("slurm.timeout_min = '01:00:00'", r"tiny.gin:11: .*timeout_min"),
        ("slurm.timeout_min = 2", r"tiny.gin:11: slurm.timeout_min = 2: must be above 3.5 minutes"),
        (
            "digits/slurm.gpus = 1",
            r"tiny.gin:11: digits/slurm.gpus: .* of the kind 'digits'.* finetune, source_pretrain",
        ),
        ("finetun/slurm.gpus = 1", r"tiny.gin:11: finetun/slurm.gpus: .*Did you mean 'finetune'"),
        ("finetune/slurm.timeout_min = 2", r"tiny.gin:11: slurm.timeout_min = 2: must be above 3.5 minutes"),
        ("finetune/slurm.partion = 'main'", r"tiny.gin:11: .*Did you mean 'partition'"),
        ("slurm.partion = 'main'", r"tiny.gin:11: .*Did you mean 'partition'"),
    ],
)
def test_a_wrong_binding_is_told_with_its_line(line: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        tiny_grid.plan(tmp_path, tmp_path / "data", ["finetune"], line)


@pytest.mark.parametrize("profile", sorted(path.name for path in (shipped_gin() / "clusters").glob("*.gin")))
def test_a_profile_changes_no_stage_and_is_not_named_by_the_table(profile: str, tmp_path: Path) -> None:
    gin = str(tiny_grid.write(tmp_path, ["finetune"]))
    plain = make_plan([gin], [], [], tmp_path / "data", Store(tmp_path))
    changed = make_plan([gin, f"clusters/{profile}"], ["slurm.account = 'me'"], [], tmp_path / "data", Store(tmp_path))
    assert [cell.stage for cell in changed.cells] == [cell.stage for cell in plain.cells]
    assert changed.origin == plain.origin == "tiny.gin"
    assert changed.cluster.account == "me"
    assert (changed.cluster.partition, plain.cluster.partition)[1] is None


def test_what_one_kind_of_stages_asks_for_reaches_its_jobs_alone(tmp_path: Path) -> None:
    gin = str(tiny_grid.write(tmp_path, ["tapt"], "slurm.mem_gb = 4.0", "further_pretrain/slurm.mem_gb = 16.0"))
    plan = make_plan([gin], ["slurm.cpus = 2"], [], tmp_path / "data", Store(tmp_path))
    memory = {kind: cluster.mem_gb for kind, cluster in plan.clusters.items()}
    assert memory == {"source_pretrain": 4.0, "further_pretrain": 16.0, "finetune": 4.0}
    assert {cluster.cpus for cluster in plan.clusters.values()} == {2}
    assert plan.cluster.mem_gb == 4.0


def test_what_one_kind_asks_for_is_no_other_grid(tmp_path: Path) -> None:
    """Neither keys nor tables tell of it, wherever it is bound."""
    gin = str(tiny_grid.write(tmp_path, ["tapt"]))
    (tmp_path / "mine.gin").write_text("further_pretrain/slurm.mem_gb = 16.0\nslurm.cpus = 2\n")
    plain = make_plan([gin], [], [], tmp_path / "data", Store(tmp_path))
    for files, overrides in (
        ([gin, str(tmp_path / "mine.gin")], []),
        ([gin], ["further_pretrain/slurm.mem_gb = 16.0"]),
        ([gin], [" finetune / slurm.mem_gb = 16.0".replace(" / ", "/")]),
    ):
        changed = make_plan(files, overrides, [], tmp_path / "data", Store(tmp_path))
        assert [cell.stage for cell in changed.cells] == [cell.stage for cell in plain.cells]
        assert (changed.origin, changed.source, changed.table_name) == (plain.origin, plain.source, plain.table_name)
        assert 16.0 in {cluster.mem_gb for cluster in changed.clusters.values()}
    computing = make_plan([gin], ["further_pretrain.steps = 5"], [], tmp_path / "data", Store(tmp_path))
    assert computing.source != plain.source


def test_what_one_kind_asks_for_is_checked_too(
    cluster: Fake, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gin = tiny_grid.write(tmp_path, ["tapt"], "further_pretrain/slurm.mem_gb = 70.0")
    folders = ["--store", str(tmp_path / "runs"), "--data", str(prepared), "--results", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"jobs for further_pretrain: slurm\.mem_gb = 70"):
        grid.main(["--gin", str(gin), "--launcher", "slurm", *folders])
    assert not (tmp_path / "runs" / ".slurm").exists()


@pytest.mark.parametrize("graphs", [True, False])
def test_jobs_are_told_whether_steps_may_be_recorded(
    graphs: bool, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gin, store = str(tiny_grid.write(tmp_path, ["finetune"])), Store(tmp_path / "runs")
    plan = make_plan([gin], [f"grid.cuda_graphs = {graphs}"], [], prepared, store)
    assignments: list[Assignment] = []

    def make(
        root: Path, made: Submission, executor: object, function: object, elements: list[tuple[Assignment]]
    ) -> str:
        assignments.extend(assignment for (assignment,) in elements)
        return str(len(assignments))

    monkeypatch.setattr(ledger, "look", lambda root: ([], {}))
    monkeypatch.setattr(limits, "array_size", lambda cluster: 100)
    monkeypatch.setattr(limits, "room", lambda cluster: (100, ""))
    monkeypatch.setattr(submit, "_submit_tables", lambda *_: None)
    monkeypatch.setattr(submit, "snapshot", lambda root: tmp_path)
    monkeypatch.setattr(sbatch, "executor", lambda *_, **named: None)
    monkeypatch.setattr(sbatch, "make", make)
    submit.submit(plan, store, submit.CommandLine([gin], [], tmp_path, prepared))
    assert len(assignments) == 4  # jobs: two for fine-tunings, and two for the backbones' own stages
    assert {one.settings.graphs for one in assignments} == {graphs}


def test_without_slurm_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gin = tiny_grid.write(tmp_path, ["finetune"])
    monkeypatch.setenv("PATH", str(tmp_path))
    folders = ["--store", str(tmp_path / "runs"), "--data", str(tmp_path / "data"), "--results", str(tmp_path / "out")]
    with pytest.raises(InputError, match="no sbatch on the PATH"):
        grid.main(["--gin", str(gin), "--launcher", "slurm", *folders])
    assert {path.name for path in tmp_path.iterdir()} == {"base.gin", "tiny.gin"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--wait"], "--wait"),
        (["--launcher", "slurm", "--workers", "2"], "slurm.array_parallelism"),
        (["--launcher", "slurm", "--workers-per-device", "2"], "slurm.runs_per_job"),
        (["--launcher", "slurm", "--device", "cpu"], "slurm.gpus"),
        (["--cancel", "--retry"], "--cancel"),
        (["--cancel", "--only", "*"], "scancel"),
    ],
)
def test_arguments_that_contradict_each_other(arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        grid.main(["--gin", str(tiny_grid.write(tmp_path, ["finetune"])), *arguments])


def test_a_profile_may_set_kinds_that_a_grid_lacks_and_the_grid_says_so(tmp_path: Path) -> None:
    gin, profile = tiny_grid.write(tmp_path, ["finetune"]), tmp_path / "profile.gin"
    profile.write_text("slurm.gpus = 1\nsupcon_pretrain/slurm.gpus = 2\nfinetune/slurm.runs_per_job = 3\n")
    plan = make_plan([str(gin), str(profile)], [], [], tmp_path / "data", Store(tmp_path / "runs"))
    assert [note for note in plan.notes if "supcon_pretrain" in note and "profile.gin:2" in note]
    assert plan.clusters["finetune"].runs_per_job == 3 and plan.clusters["source_pretrain"].runs_per_job == 1
    with pytest.raises(InputError, match="of the kind 'supcon_pretrain'"):
        make_plan([str(gin)], ["supcon_pretrain/slurm.gpus = 2"], [], tmp_path / "data", Store(tmp_path / "runs"))
