# SPDX-License-Identifier: Apache-2.0
"""Answers the launch scripts: `python -m ring_jax.cluster slice|flags|jobset ...`."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from ring_jax.cluster.accelerators import UnknownNameError, find_slice
from ring_jax.cluster.jobset import JobSet, render
from ring_jax.cluster.presets import find_preset


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the answer; 2 and one line on standard error where a name is unknown."""
    args = _parser().parse_args(argv)
    try:
        print(args.answer(args))
    except UnknownNameError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ring_jax.cluster")
    questions = parser.add_subparsers(required=True)
    of_slice = questions.add_parser("slice", help="a slice as GENERATION TYPE IMAGE")
    of_slice.add_argument("type")
    of_slice.set_defaults(answer=_describe_tpu_vm)
    of_flags = questions.add_parser("flags", help="a preset as VARIABLE=FLAGS")
    of_flags.add_argument("preset")
    of_flags.set_defaults(answer=_flags)
    of_jobset = questions.add_parser("jobset", help="the manifest for GKE")
    for name in ("type", "name", "namespace", "image", "volume-claim", "queue"):
        of_jobset.add_argument(f"--{name}", required=True)
    of_jobset.add_argument("--slices", type=int, required=True)
    of_jobset.add_argument("--max-restarts", type=int, required=True)
    of_jobset.add_argument("--template", type=pathlib.Path, required=True)
    of_jobset.add_argument("--preset", help="the generation's where it is not given")
    of_jobset.add_argument("train_args", nargs="*")
    of_jobset.set_defaults(answer=_jobset)
    return parser


def _describe_tpu_vm(args: argparse.Namespace) -> str:
    found = find_slice(args.type)
    if found.tpu_vm_type is None:
        raise UnknownNameError(
            f"--type={args.type} is not rented as a TPU VM; use launch/gke/jobset.sh."
        )
    generation = found.generation
    return f"{generation.name} {found.tpu_vm_type} {generation.runtime_version}"


def _flags(args: argparse.Namespace) -> str:
    preset = find_preset(args.preset)
    return f"{preset.variable}={' '.join(preset.flags)}"


def _jobset(args: argparse.Namespace) -> str:
    found = find_slice(args.type)
    jobset = JobSet(
        name=args.name,
        namespace=args.namespace,
        slice=found,
        num_slices=args.slices,
        image=args.image,
        volume_claim=args.volume_claim,
        queue=args.queue,
        max_restarts=args.max_restarts,
        preset=find_preset(args.preset or found.generation.name).name,
        train_args=tuple(args.train_args),
    )
    return render(jobset, args.template).rstrip("\n")


if __name__ == "__main__":
    sys.exit(main())
