# SPDX-License-Identifier: Apache-2.0
"""The manifest for GKE, held against its schema, and what kubectl is asked."""

import copy
import json
import pathlib
import re

import jsonschema
import pytest
import yaml

from ring_jax.cli import status

from .conftest import LAUNCH, World, refused

SCHEMA = json.loads(pathlib.Path(__file__).with_name("jobset.schema.json").read_text())
IMAGE = "--image=europe-docker.pkg.dev/team-1/images/ring_jax:1"
NEEDED = (IMAGE, "--volume-claim=ring-runs")
TRAIN_ARGS = ("--", "--config=configs/my_run.py", "--workdir=/shared/run")
V5E = ("--type=v5e-256", "--slices=2")


def render(world, *words, train_args=TRAIN_ARGS) -> str:
    result = world.run("gke/jobset.sh", "render", "moe", *NEEDED, *words, *train_args)
    assert result.returncode == 0, result.stderr
    return result.stdout


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        SCHEMA, format_checker=jsonschema.FormatChecker()
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> dict:
    return yaml.safe_load(render(World(tmp_path_factory.mktemp("world")), *V5E))


def test_two_slices_of_v5e_256_are_as_reviewed(world, check_golden):
    text = render(world, *V5E)
    check_golden("launch/jobset_v5e_256_two_slices.yaml", text)
    validator().validate(yaml.safe_load(text))


@pytest.mark.parametrize("type", ["v5e-16", "v5p-64", "v6e-256", "tpu7x-128"])
def test_one_slice_of_each_generation_fits_the_schema(world, type):
    manifest = yaml.safe_load(render(world, f"--type={type}"))
    validator().validate(manifest)
    job = manifest["spec"]["replicatedJobs"][0]
    assert job["replicas"] == 1
    container = job["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == [type.partition("-")[0], *TRAIN_ARGS[1:]]


def test_the_schema_refuses_what_the_server_would():
    validator().check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["apiVersion"], "jobset.x-k8s.io/v1alpha1"),
        (["spec", "failurePolicy", "rules", 0, "action"], "Fail"),
        (["spec", "failurePolicy", "maxRestart"], 8),
        (["spec", "replicatedJobs", 0, "replicas"], "two"),
        (["metadata", "name"], "Moe_1"),
    ],
)
def test_a_slip_in_the_manifest_would_be_seen(manifest, path, value):
    broken = copy.deepcopy(manifest)
    *parents, last = path
    place = broken
    for step in parents:
        place = place[step]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        validator().validate(broken)


def action(manifest: dict, exit_code: int | None) -> str:
    """What becomes of the set when a container ends so; None: its machine went away.

    As the Job controller words a failure, and as JobSet reads the words: the first rule
    that matches acts, and without one the set restarts.
    """
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    reason, message = "BackoffLimitExceeded", "Job has reached the backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        if exit_code in rule.get("onExitCodes", {}).get("values", ()):
            reason = "PodFailurePolicy"
            message = (
                "Container ring for pod default/moe-0 failed with exit code "
                f"{exit_code} matching {rule['action']} rule at index {index}"
            )
            break
        if exit_code is None and "onPodConditions" in rule:
            reason = "PodFailurePolicy"
            message = (
                "Pod default/moe-0 has condition DisruptionTarget matching "
                f"{rule['action']} rule at index {index}"
            )
            break
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(
            re.search(pattern, message) for pattern in patterns
        ):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("exit_code", "expected"),
    [
        (status.MISTAKE, "FailJobSet"),
        (status.STOPPED, "FailJobSet"),
        (status.ENVIRONMENT, "RestartJobSet"),
        (status.INTERRUPTED, "RestartJobSetAndIgnoreMaxRestarts"),
        (None, "RestartJobSetAndIgnoreMaxRestarts"),
        (1, "RestartJobSet"),
        (23, "RestartJobSet"),
        (139, "RestartJobSet"),
    ],
)
def test_what_happens_next_follows_the_exit_status(manifest, exit_code, expected):
    assert action(manifest, exit_code) == expected


def test_no_argument_adds_to_the_structure_or_is_expanded(world):
    odd = 'x" }\n    privileged: false # $(HOME) $name'
    text = render(world, *V5E, train_args=(*TRAIN_ARGS, odd))
    manifest = yaml.safe_load(text)
    validator().validate(manifest)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    args = job["template"]["spec"]["containers"][0]["args"]
    assert args[-1] == odd.replace("$(", "$$(")


def test_submit_hands_the_whole_manifest_to_kubectl(world):
    world.fake("kubectl")
    words = ("submit", "moe", *NEEDED, *V5E, "--namespace=team", *TRAIN_ARGS)
    assert world.run("gke/jobset.sh", *words).returncode == 0
    asked, applied = world.records()
    assert asked["words"] == ["kubectl", "config", "current-context"]
    assert applied["words"] == ["kubectl", "--namespace=team", "apply", "--filename=-"]
    assert applied["stdin"] == render(world, *V5E, "--namespace=team")


def test_a_dry_run_prints_the_command_and_the_manifest(world):
    words = ("submit", "moe", *NEEDED, *V5E, "--dry-run", *TRAIN_ARGS)
    result = world.run("gke/jobset.sh", *words)
    command, _, manifest = result.stdout.partition("\n")
    assert command == "kubectl --namespace=default apply --filename=-"
    assert manifest == render(world, *V5E)


def test_log_status_and_delete_name_the_run(world):
    world.fake("kubectl")
    for verb in ("log", "status", "delete"):
        result = world.run("gke/jobset.sh", verb, "moe", "--context=pod")
        assert result.returncode == 0, result.stderr
    kubectl = "kubectl --context=pod --namespace=default"
    assert world.calls() == [
        f"{kubectl} logs --follow --tail=-1 job/moe-slice-job-0 --container=ring",
        f"{kubectl} get jobset moe",
        f"{kubectl} get pods --selector=jobset.sigs.k8s.io/jobset-name=moe"
        " --output=wide",
        f"{kubectl} delete jobset moe",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*NEEDED, *TRAIN_ARGS), ["no slice", "--type"]),
        ((NEEDED[1], *V5E, *TRAIN_ARGS), ["no image", "Dockerfile"]),
        ((IMAGE, *V5E, *TRAIN_ARGS), ["no volume", "--volume-claim"]),
        ((*NEEDED, "--type=v5e-100", *TRAIN_ARGS), ["v5e-100", "v5e-128"]),
        ((*NEEDED, "--type=h100-8", *TRAIN_ARGS), ["h100-8", "tpu7x"]),
        ((*NEEDED, *V5E, "--slices=0", *TRAIN_ARGS), ["--slices=0", "1 or more"]),
        ((*NEEDED, "--type=v5e-4", "--slices=2", *TRAIN_ARGS), ["--slices=2", "hosts"]),
        ((*NEEDED, *V5E, "--preset=x", *TRAIN_ARGS), ["--preset=x", "v5e"]),
        (
            (*NEEDED, *V5E, "--", "--config=a.py", "--workdir=/tmp/run"),
            ["/tmp/run", "/shared"],
        ),
    ],
)
def test_a_mistake_is_told_in_a_line_and_nothing_is_applied(world, words, said):
    world.fake("kubectl")
    refused(world.run("gke/jobset.sh", "submit", "moe", *words), *said)
    assert world.calls() == []


def test_without_a_cluster_nothing_is_applied(world):
    world.fake("kubectl")
    world.answer("current-context", "error: current-context is not set\n", status=1)
    words = ("submit", "moe", *NEEDED, *V5E, *TRAIN_ARGS)
    refused(world.run("gke/jobset.sh", *words), "no credentials", "get-credentials")
    assert len(world.calls()) == 1


def test_the_image_runs_what_the_manifest_gives_its_arguments_to():
    lines = (LAUNCH / "Dockerfile").read_text("utf-8").splitlines()
    assert 'ENTRYPOINT ["/opt/ring_jax/launch/train.sh"]' in lines
    assert "WORKDIR /opt/ring_jax" in lines
