# SPDX-License-Identifier: Apache-2.0
"""Plays gcloud, kubectl, sbatch, srun and scontrol: records a call, checks it, answers.

Run as a script by the fakes that conftest.py puts on PATH; standard library only. The
flags are those of the tools' reference pages, as far as the scripts use them; a call
with another flag is refused as the tool would refuse it. Answers are taken, first match
first, from the list of `[fragment, status, text, times]` in the folder.
"""

import json
import sys

EVERYWHERE = {"--project", "--zone", "--format", "--quiet"}
CREATE = {"--spot", "--reserved", "--network", "--subnetwork", "--internal-ips"}
FLAGS = {
    "gcloud auth list": {"--filter", "--format"},
    "gcloud compute tpus queued-resources create": EVERYWHERE
    | CREATE
    | {"--node-id", "--accelerator-type", "--runtime-version"},
    "gcloud compute tpus queued-resources describe": EVERYWHERE,
    "gcloud compute tpus queued-resources delete": EVERYWHERE | {"--force", "--async"},
    "gcloud compute tpus tpu-vm create": EVERYWHERE
    | CREATE
    | {"--accelerator-type", "--version"},
    "gcloud compute tpus tpu-vm describe": EVERYWHERE,
    "gcloud compute tpus tpu-vm delete": EVERYWHERE | {"--async"},
    "gcloud compute tpus tpu-vm ssh": EVERYWHERE
    | {"--worker", "--command", "--internal-ip"},
    "gcloud compute tpus tpu-vm scp": EVERYWHERE | {"--worker", "--internal-ip"},
    "kubectl config current-context": set(),
    "kubectl apply": {"--filename"},
    "kubectl logs": {"--follow", "--tail", "--container"},
    "kubectl get": {"--selector", "--output"},
    "kubectl delete": set(),
    "sbatch": {
        *("--job-name", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--output"),
        "--cpus-per-task",
        *("--partition", "--account", "--time", "--qos"),
    },
    "srun": {"--kill-on-bad-exit"},
    "scontrol requeue": set(),
    "sleep": set(),
}
NEEDS_PLACE = "gcloud compute tpus"


def main(folder: str, name: str, words: list[str]) -> int:
    """Records `name words` in the folder and returns the status of the answer."""
    stdin = sys.stdin.read() if "--filename=-" in words else ""
    with open(f"{folder}/calls.jsonl", "a") as calls:
        calls.write(json.dumps({"words": [name, *words], "stdin": stdin}) + "\n")
    if problem := refuse(name, words):
        print(f"ERROR: ({name}) {problem}", file=sys.stderr)
        return 2
    status, text = answer(folder, " ".join([name, *words]))
    print(text, end="", file=sys.stderr if status else sys.stdout)
    return status


def refuse(name: str, words: list[str]) -> str | None:
    """Says what the tool would not take."""
    # kubectl's own flags come before its command.
    rest = list(words)
    while rest and rest[0].startswith(("--namespace=", "--context=")):
        rest.pop(0)
    line = " ".join([name, *rest])
    command = max((c for c in FLAGS if f"{line} ".startswith(f"{c} ")), key=len)
    flags = [word.partition("=")[0] for word in own_flags(name, rest)]
    if unknown := set(flags) - FLAGS[command]:
        return f"unrecognized arguments: {sorted(unknown)}"
    if command.startswith(NEEDS_PLACE) and not {"--project", "--zone"} <= set(flags):
        return "needs --project and --zone"
    return None


def own_flags(name: str, words: list[str]) -> list[str]:
    """Leaves out what belongs to the script that sbatch and srun are given."""
    flags = []
    for word in words:
        if name in ("sbatch", "srun") and not word.startswith("--"):
            break
        if word.startswith("--"):
            flags.append(word)
    return flags


def answer(folder: str, line: str) -> tuple[int, str]:
    """Takes the first answer whose fragment the line has; without one all went well."""
    with open(f"{folder}/answers.json") as file:
        answers = json.load(file)
    for number, (fragment, status, text, times) in enumerate(answers):
        if fragment in line and times:
            answers[number][3] -= 1
            with open(f"{folder}/answers.json", "w") as file:
                json.dump(answers, file)
            return status, text
    return 0, ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
