# SPDX-License-Identifier: Apache-2.0
"""`launch/slurm/`: what is submitted, and what the job does after its end."""

import pathlib
import shlex

import pytest

from .conftest import LAUNCH, refused

JOB = "41"


@pytest.fixture
def cluster(world):
    world.fake("sbatch", "scontrol", "sleep")
    return world


def train_args(world) -> tuple[str, ...]:
    return ("--", "--config=configs/my_run.py", f"--workdir={world.folder}/run")


def test_two_nodes_of_eight_gpus_get_a_process_for_each_gpu(cluster):
    result = cluster.run(
        *("slurm/submit.sh", "moe", "--nodes=2", "--time=24:00:00"),
        *("--partition=h100", "--sbatch-arg=--qos=low", "--dry-run"),
        *("--", "--config=configs/my_run.py", "--workdir=/shared/run"),
    )
    assert shlex.split(result.stdout) == [
        *("sbatch", "--job-name=moe", "--nodes=2", "--ntasks-per-node=8"),
        *(
            "--gpus-per-node=8",
            "--cpus-per-task=8",
            "--output=/shared/run.slurm/%j.txt",
        ),
        *("--time=24:00:00", "--partition=h100", "--qos=low"),
        *(f"{LAUNCH}/slurm/train.sbatch", str(LAUNCH.parent), "/shared/run.slurm"),
        *("8", "h100", "--config=configs/my_run.py", "--workdir=/shared/run"),
    ]
    assert cluster.calls() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), ["no nodes", "--nodes=2"]),
        (("--nodes=two",), ["--nodes=two", "number"]),
        (("--nodes=0",), ["--nodes=0", "1 or more"]),
        (("--nodes=2", "--preset=a100"), ["a100", "h100"]),
        (("--nodes=2", "--preset=v5p"), ["v5p", "h100"]),
        (("--nodes=2", "--gpus=8"), ["--gpus=8", "--help"]),
        (("--nodes=2", "--", "--config=a.py"), ["--workdir"]),
    ],
)
def test_a_mistake_is_told_in_a_line_and_nothing_is_submitted(cluster, words, said):
    more = () if "--" in words else train_args(cluster)
    refused(cluster.run("slurm/submit.sh", "moe", *words, *more), *said)
    assert cluster.calls() == []
    assert not (cluster.folder / "run.slurm").exists()


def test_what_sbatch_refuses_leaves_no_folder(cluster):
    checkout = cluster.folder / "checkout"
    (checkout / ".venv/bin").mkdir(parents=True)
    cluster.script("checkout/.venv/bin/ring", "")
    for name in ("launch", "ring_jax"):
        copy_tree(LAUNCH.parent / name, checkout / name)
    cluster.answer("sbatch", "sbatch: error: invalid partition\n", status=1, times=1)
    script = checkout / "launch/slurm/submit.sh"
    words = ("moe", "--nodes=2", *train_args(cluster))
    result = cluster.run(str(script), *words)
    assert result.returncode == 4
    assert "invalid partition" in result.stderr
    assert not (cluster.folder / "run.slurm").exists()
    assert cluster.run(str(script), *words).returncode == 0
    assert (cluster.folder / "run.slurm").is_dir()


def copy_tree(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the scripts and the room that they ask."""
    for file in source.rglob("*"):
        name = file.relative_to(source)
        wanted = source.name == "launch" or name.parts[0] in ("__init__.py", "cluster")
        if file.is_file() and wanted and "__pycache__" not in name.parts:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(file.read_bytes())
            (target / name).chmod(file.stat().st_mode)


# As srun does: a task for each process, and the highest status.
SRUN = """
echo "$*" >>"$HOME/srun.txt"
while [[ $1 == --* ]]; do shift; done
highest=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task "$@" || { status=$?; ((status > highest)) && highest=$status; }
done
exit "$highest"
"""


def job(cluster, statuses: str, *, ring='exit "${statuses[SLURM_PROCID]}"\n'):
    """Runs the job with tasks that end with these statuses."""
    cluster.script("bin/srun", SRUN)
    ring = cluster.script("ring", f"statuses=({statuses})\n{ring}")
    logs = cluster.folder / "run.slurm"
    return cluster.run(
        *("slurm/train.sbatch", str(LAUNCH.parent), str(logs), "1", "none"),
        *("--config=a.py", "--workdir=/shared/run"),
        RING=str(ring),
        SLURM_JOB_ID=JOB,
        SLURM_NTASKS=str(len(statuses.split())),
    )


@pytest.mark.parametrize(
    ("statuses", "status", "is_requeued"),
    [
        ("0 0", 0, False),
        ("134 2", 2, False),
        ("3 75", 3, False),
        ("75 75", 75, True),
        ("4 75", 4, True),
    ],
)
def test_a_job_is_requeued_by_the_statuses_of_its_tasks(
    cluster, statuses, status, is_requeued
):
    result = job(cluster, statuses)
    assert result.returncode == status, result.stderr
    assert cluster.calls() == [f"scontrol requeue {JOB}"] * is_requeued


def test_crashes_are_counted_over_requeues_and_preemptions_are_not(cluster):
    requeued = []
    for statuses in ("75 75", "1 75", "75 75", "1 75"):
        job(cluster, statuses)
        requeued.append(bool(cluster.calls()))
    assert requeued == [True, True, True, False]


def test_a_task_without_a_word_counts_as_killed(cluster):
    result = job(cluster, "0", ring="kill -KILL $PPID\n")
    assert "status 137 (retry)" in result.stdout


def test_a_job_that_slurm_ends_leaves_the_decision_to_slurm(cluster):
    ring = 'kill -TERM "$BATCH"; exit 75\n'
    batch = cluster.script(
        "batch", f'export BATCH=$$\nexec "{LAUNCH}/slurm/train.sbatch" "$@"\n'
    )
    cluster.script("bin/srun", SRUN)
    logs = cluster.folder / "run.slurm"
    result = cluster.run(
        *(str(batch), str(LAUNCH.parent), str(logs), "1", "none"),
        RING=str(cluster.script("ring", ring)),
        SLURM_JOB_ID=JOB,
        SLURM_NTASKS="1",
    )
    assert result.returncode == 75
    assert cluster.calls() == ["sleep 600"]
