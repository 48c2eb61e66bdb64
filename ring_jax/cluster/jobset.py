# SPDX-License-Identifier: Apache-2.0
"""Fills the JobSet manifest of `launch/gke/jobset.yaml`."""

import dataclasses
import json
import pathlib
import string

from ring_jax.cluster.accelerators import Slice, UnknownNameError

MOUNT = "/shared"
"""Where the pods see the volume that keeps the run folder."""


@dataclasses.dataclass(frozen=True)
class JobSet:
    """What differs between two launches on GKE."""

    name: str
    namespace: str
    slice: Slice
    num_slices: int
    image: str
    volume_claim: str
    queue: str
    max_restarts: int
    preset: str
    train_args: tuple[str, ...]
    """The words after `ring train`."""


def render(jobset: JobSet, template: pathlib.Path) -> str:
    """Returns the manifest as YAML.

    Args:
      jobset: what to launch.
      template: a manifest with `$field` where values belong; each becomes a quoted
        string or a number, so that no value can add to the structure.

    Raises:
      UnknownNameError: slices of one host were to be joined.
    """
    if jobset.num_slices > 1 and jobset.slice.num_hosts == 1:
        raise UnknownNameError(
            f"--slices={jobset.num_slices} of {jobset.slice.name}: GKE joins only "
            "slices of several hosts; take a larger --type or --slices=1."
        )
    words = (jobset.preset, *jobset.train_args)
    values = {
        "name": jobset.name,
        "namespace": jobset.namespace,
        "queue": jobset.queue,
        "max_restarts": jobset.max_restarts,
        "num_slices": jobset.num_slices,
        "num_hosts": jobset.slice.num_hosts,
        "accelerator": jobset.slice.generation.gke_accelerator,
        "topology": jobset.slice.topology,
        "machine": jobset.slice.generation.gke_machine,
        "image": jobset.image,
        "volume_claim": jobset.volume_claim,
        "mount": MOUNT,
        "args": [_without_expansion(word) for word in words],
    }
    quoted = {key: json.dumps(value) for key, value in values.items()}
    return string.Template(template.read_text("utf-8")).substitute(quoted)


def _without_expansion(word: str) -> str:
    """Keeps Kubernetes from replacing `$(NAME)` in an argument by a variable."""
    return word.replace("$(", "$$(")
