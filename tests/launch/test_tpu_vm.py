# SPDX-License-Identifier: Apache-2.0
"""`launch/tpu_vm.sh` against a gcloud that records its calls."""

import shlex
import tarfile

import pytest

from .conftest import NOT_FOUND, TRAIN_ARGS, refused

PLACE = ("--project=team-1", "--zone=us-east5-a")
V5P = ("--type=v5p-64", "--poll-seconds=0")
WHERE = "--project=team-1 --zone=us-east5-a"
SSH = f"gcloud compute tpus tpu-vm ssh moe {WHERE}"
WORKER = "--command=ring_jax/launch/tpu_worker.sh"
QUEUE = "gcloud compute tpus queued-resources"
DESCRIBE = "queued-resources describe"


@pytest.fixture
def cloud(world):
    """A project in which nothing is there yet, and every request is granted at once."""
    world.fake("gcloud")
    world.answer("auth list", "someone@team.example\n")
    return world


def has_slice(cloud, state="ACTIVE", type="v5p-64", *, times=1_000_000):
    cloud.answer(DESCRIBE, f"{state}\t{type}\n", times=times)


def hosts_say(cloud, *statuses, times=1):
    lines = [f"ring-worker host-{i} {status}\n" for i, status in enumerate(statuses)]
    cloud.answer(f"{WORKER} status", "".join(lines), times=times)


def test_a_queued_v5p_64_is_made_installed_started_and_followed(cloud):
    result = cloud.run(
        "tpu_vm.sh",
        "run",
        "moe",
        *PLACE,
        *V5P,
        "--spot",
        "--nfs=10.0.0.2:/ring",
        "--dry-run",
        *TRAIN_ARGS,
        "--config.mesh.fsdp=16",
    )
    assert result.returncode == 0, result.stderr
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    assert [" ".join(words) for words in lines] == [
        f"{QUEUE} create moe --node-id=moe {WHERE} --accelerator-type=v5p-64"
        " --runtime-version=v2-alpha-tpuv5 --spot",
        f"{QUEUE} describe moe {WHERE}"
        " --format=value(state.state,tpu.nodeSpec[0].node.acceleratorType)",
        "gcloud compute tpus tpu-vm scp /tmp/ring_jax.tar.gz moe:ring_jax.tar.gz"
        f" {WHERE} --worker=all",
        " ".join(lines[3]),
        f"{SSH} --worker=all {WORKER} install tpu 10.0.0.2:/ring",
        f"{SSH} --worker=all {WORKER} start v5p --config=my_run.py"
        " --workdir=/shared/run --config.mesh.fsdp=16",
        f"{SSH} --worker=0 {WORKER} log",
        f"{SSH} --worker=all {WORKER} status",
    ]
    assert "tar -xzf ring_jax.tar.gz" in lines[3][-1]
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("type", "accelerator", "image"),
    [
        ("v6e-256", "v6e-256", "v2-alpha-tpuv6e"),
        ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5litepod-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
    ],
)
def test_a_direct_vm_has_its_own_words_for_the_same(cloud, type, accelerator, image):
    result = cloud.run(
        "tpu_vm.sh", "create", "moe", *PLACE, f"--type={type}", "--direct", "--dry-run"
    )
    assert result.stdout.splitlines()[0] == (
        f"gcloud compute tpus tpu-vm create moe {WHERE} "
        f"--accelerator-type={accelerator} --version={image}"
    )


def test_arguments_reach_the_hosts_as_they_were_written(cloud):
    has_slice(cloud)
    odd = "--config.data.note=it's $HOME; a 'b' \"c\" *"
    assert (
        cloud.run(
            "tpu_vm.sh", "start", "moe", *PLACE, *V5P, *TRAIN_ARGS, odd
        ).returncode
        == 0
    )
    line = cloud.records()[-1]["words"][-1].removeprefix("--command=")
    assert shlex.split(line)[-1] == odd


def test_create_waits_until_the_queue_has_been_served(cloud):
    cloud.answer(DESCRIBE, NOT_FOUND, status=1, times=1)
    has_slice(cloud, "WAITING_FOR_RESOURCES", times=1)
    has_slice(cloud, "PROVISIONING", times=1)
    has_slice(cloud)
    result = cloud.run("tpu_vm.sh", "create", "moe", *PLACE, *V5P)
    assert result.returncode == 0, result.stderr
    verbs = [call.split()[4] for call in cloud.calls() if "queued" in call]
    assert verbs == ["describe", "create", "describe", "describe", "describe"]


def test_create_takes_the_slice_that_is_there_but_not_another_type(cloud):
    has_slice(cloud)
    assert cloud.run("tpu_vm.sh", "create", "moe", *PLACE, *V5P).returncode == 0
    result = cloud.run("tpu_vm.sh", "create", "moe", *PLACE, "--type=v5p-128")
    refused(result, "v5p-64", "v5p-128")
    assert not any(" create " in call for call in cloud.calls())


@pytest.mark.parametrize(
    ("state", "status"), [("SUSPENDED", 75), ("FAILED", 4), ("DELETING", 4)]
)
def test_create_tells_a_preempted_slice_from_a_failed_one(cloud, state, status):
    has_slice(cloud, state)
    result = cloud.run("tpu_vm.sh", "create", "moe", *PLACE, *V5P)
    assert result.returncode == status
    assert state in result.stderr


def train(cloud, *words):
    result = cloud.run("tpu_vm.sh", "run", "moe", *PLACE, *V5P, *words, *TRAIN_ARGS)
    steps = []
    for call in cloud.calls():
        if WORKER in call:
            steps.append(call.partition(WORKER)[2].split()[0])
        elif " create " in call or " delete " in call:
            steps.append(call.split()[4])
    return result, steps


def test_a_run_that_is_done_ends_with_zero(cloud):
    has_slice(cloud)
    hosts_say(cloud, "idle", "idle")
    hosts_say(cloud, "exited 0", "exited 0")
    result, steps = train(cloud)
    assert result.returncode == 0, result.stderr
    assert steps == ["status", "install", "start", "log", "status"]


def test_a_run_that_goes_on_is_followed_and_not_installed_over(cloud):
    has_slice(cloud)
    hosts_say(cloud, "running", "running", times=2)
    hosts_say(cloud, "exited 0", "exited 0")
    result, steps = train(cloud)
    assert result.returncode == 0, result.stderr
    assert "install" not in steps
    assert "start" not in steps[:2]


def test_a_preempted_slice_is_deleted_and_asked_for_anew(cloud):
    has_slice(cloud, times=1)
    hosts_say(cloud, "idle")
    cloud.answer(f"{WORKER} log", "connection lost\n", status=255, times=1)
    has_slice(cloud, "SUSPENDED", times=1)
    cloud.answer(DESCRIBE, NOT_FOUND, status=1, times=1)
    has_slice(cloud)
    hosts_say(cloud, "exited 0")
    result, steps = train(cloud)
    assert result.returncode == 0, result.stderr
    assert steps == [
        *("status", "install", "start", "log"),
        *("delete", "create", "install", "start", "log", "status"),
    ]


def test_run_replaces_a_slice_that_was_preempted_while_nobody_looked(cloud):
    has_slice(cloud, "SUSPENDED", times=1)
    cloud.answer(DESCRIBE, NOT_FOUND, status=1, times=1)
    has_slice(cloud)
    hosts_say(cloud, "exited 0")
    result, steps = train(cloud)
    assert result.returncode == 0, result.stderr
    assert steps[:4] == ["delete", "create", "install", "start"]


@pytest.mark.parametrize("status", [2, 3])
def test_a_mistake_or_a_check_is_not_tried_again(cloud, status):
    has_slice(cloud)
    hosts_say(cloud, "idle", "idle")
    hosts_say(cloud, "exited 134", f"exited {status}")
    result, steps = train(cloud)
    assert result.returncode == status
    assert steps.count("start") == 1


def test_crashes_are_counted_and_preemptions_are_not(cloud):
    has_slice(cloud)
    hosts_say(cloud, "idle", "idle")
    hosts_say(cloud, "exited 75", "exited 75", times=2)
    hosts_say(cloud, "exited 75", "exited 1", times=9)
    result, steps = train(cloud, "--max-restarts=1")
    assert result.returncode == 4
    assert "last with status 1" in result.stderr
    assert steps.count("start") == 1 + 2 + 1


def test_hosts_that_wait_for_a_dead_partner_are_stopped(cloud):
    has_slice(cloud)
    hosts_say(cloud, "idle", "idle")
    hosts_say(cloud, "exited 1", "running", times=2)
    hosts_say(cloud, "exited 0", "exited 0")
    result, steps = train(cloud)
    assert result.returncode == 0, result.stderr
    assert steps[4:8] == ["status", "log", "status", "stop"]


def test_hosts_that_never_answer_end_the_launch(cloud):
    has_slice(cloud)
    cloud.answer(f"{WORKER} status", "ssh: timed out\n", status=255)
    result = cloud.run("tpu_vm.sh", "resume", "moe", *PLACE, *V5P, *TRAIN_ARGS)
    assert result.returncode == 4
    assert "do not answer" in result.stderr


def test_the_checkout_is_copied_without_what_git_ignores(cloud):
    has_slice(cloud)
    keep = cloud.script(
        "bin/keep",
        'for word; do case $word in *.gz) cp "$word" "$HOME/kept.gz";; esac; done\n',
    )
    gcloud = cloud.bin / "gcloud"
    gcloud.write_text(gcloud.read_text().replace("exec ", f'"{keep}" "$5"\nexec '))
    result = cloud.run("tpu_vm.sh", "install", "moe", *PLACE)
    assert result.returncode == 0, result.stderr
    assert len(cloud.calls()) == 4  # credentials, copy, unpack, install
    with tarfile.open(cloud.folder / "kept.gz") as archive:
        names = archive.getnames()
    assert {"launch/tpu_worker.sh", "ring_jax/cluster/xla_flags.json"} <= set(names)
    assert not any(name.startswith((".venv", ".git/")) for name in names)
    assert not list(cloud.folder.glob("tmp.*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dance", "moe"), ["'dance'", "create"]),
        (("create", "Moe_1", *PLACE), ["'Moe_1'", "a-z"]),
        (("create", "moe", PLACE[1], *V5P), ["no project", "--project"]),
        (("create", "moe", PLACE[0], *V5P), ["no zone", "--zone"]),
        (("create", "moe", PLACE[0], "--zone=us", *V5P), ["--zone=us", "us-east5-a"]),
        (("create", "moe", *PLACE), ["no slice", "--type"]),
        (("create", "moe", *PLACE, "--type=v9-8"), ["v9-8", "v5e, v5p, v6e"]),
        (("create", "moe", *PLACE, "--type=v6e-255"), ["v6e-255", "v6e-256"]),
        (("create", "moe", *PLACE, "--type=tpu7x-64"), ["tpu7x-64", "gke"]),
        (("create", "moe", *PLACE, *V5P, "--nfs=host"), ["--nfs=host", "EXPORT"]),
        (("create", "moe", *PLACE, *V5P, "--extras=data"), ["=data", "tpu"]),
        (("create", "moe", *PLACE, *V5P, "--sport"), ["--sport", "--help"]),
        (("run", "moe", *PLACE, *V5P), ["--config", "--workdir"]),
        (("run", "moe", *PLACE, *V5P, "--max-restarts=x", *TRAIN_ARGS), ["=x"]),
        (("run", "moe", *PLACE, *V5P, "--preset=fast", *TRAIN_ARGS), ["fast", "v5p"]),
        (
            ("run", "moe", *PLACE, *V5P, "--", "--config=a.py", "--workdir=gs://b/c"),
            ["gs://b/c", "mount"],
        ),
        (
            ("run", "moe", *PLACE, *V5P, "--", "--config=a.py", "--workdir=runs/c"),
            ["runs/c", "root"],
        ),
    ],
)
def test_a_mistake_is_told_in_a_line_before_gcloud_is_asked(cloud, words, said):
    refused(cloud.run("tpu_vm.sh", *words), *said)
    assert cloud.calls() == []


def test_without_credentials_nothing_is_created(world):
    world.fake("gcloud")
    result = world.run("tpu_vm.sh", "create", "moe", *PLACE, *V5P)
    refused(result, "no credentials", "gcloud auth login")
    assert len(world.calls()) == 1


def test_project_and_zone_may_come_from_gclouds_own_variables(cloud):
    result = cloud.run(
        "tpu_vm.sh",
        "create",
        "moe",
        *V5P,
        "--dry-run",
        CLOUDSDK_CORE_PROJECT="team-1",
        CLOUDSDK_COMPUTE_ZONE="us-east5-a",
    )
    assert WHERE in result.stdout


def test_what_gcloud_refuses_ends_the_launch_with_its_words(cloud):
    cloud.answer(DESCRIBE, "ERROR: PERMISSION_DENIED: no\n", status=1)
    result = cloud.run("tpu_vm.sh", "create", "moe", *PLACE, *V5P)
    assert result.returncode == 4
    assert "PERMISSION_DENIED" in result.stderr
    assert not any(" create " in call for call in cloud.calls())


# Hosts are folders; a command for all of them runs in each, with its folder as home.
HOSTS = """
where=$HOME
shift 3
for word in "$@"; do
  case $word in
    --command=*) command=${word#*=} ;;
    --worker=*) worker=${word#*=} ;;
  esac
done
case $1 in
  describe) printf 'READY\\tv6e-8\\n' ;;
  scp) for host in "$where"/host-*; do cp "$2" "$host/ring_jax.tar.gz"; done ;;
  ssh)
    case $command in *'tpu_worker.sh install'*) exit ;; esac
    for host in "$where"/host-*; do
      case $worker in
        all | "${host##*-}") (cd "$host" && HOME=$host bash -c "$command") ;;
      esac
    done
    ;;
esac
"""
RING = """
echo "started with $LIBTPU_INIT_ARGS"
rm "$HOME/first" 2>/dev/null || exit 0
exit 75
"""


def test_two_hosts_are_installed_started_and_started_again_for_real(cloud):
    for number in range(2):
        (cloud.folder / f"host-{number}").mkdir()
        (cloud.folder / f"host-{number}/first").touch()
    account = 'case "$1" in auth) echo someone; exit ;; esac\n'
    cloud.script("bin/gcloud", account + HOSTS)
    result = cloud.run(
        *("tpu_vm.sh", "run", "moe", *PLACE, "--direct", "--type=v6e-8"),
        *("--poll-seconds=1", *TRAIN_ARGS),
        RING=str(cloud.script("ring", RING)),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("was interrupted; starting it again") == 1
    for number in range(2):
        log = (cloud.folder / f"host-{number}/ring_jax_run/log.txt").read_text()
        assert log.count("started with --xla_") == 2
        assert (cloud.folder / f"host-{number}/ring_jax/setup.py").is_file()
    assert "started with" in result.stdout
