# SPDX-License-Identifier: Apache-2.0
"""`ring plan`: a run's step compiled for a TPU pod that need not be there."""

import argparse
import json
import pathlib
import sys

import jax

from ring_jax.cli import status
from ring_jax.cli.console import Console
from ring_jax.cli.plan_tables import (
    GIB,
    Rates,
    print_plan,
    print_tried,
    say_overflow,
    summary,
)
from ring_jax.cli.settings import load_run_config
from ring_jax.config import ConfigError, RunConfig
from ring_jax.plan import (
    BYTES_PER_SECOND_PER_HOST,
    CompileError,
    Overflow,
    Plan,
    Pod,
    compile_best,
    compile_until_it_fits,
    default_cache,
    find_pod,
    overrides,
    plan_step,
)

SUMMARY = "compiles a run's step for a TPU pod that is not there: memory, time, cost"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the operands of `ring plan`."""
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="a slice's shape, such as v5p:4x4x4, or an accelerator, such as v5p-128",
    )
    parser.add_argument(
        "--slices",
        type=int,
        default=1,
        metavar="N",
        help="such slices, joined over the data center's network",
    )
    parser.add_argument(
        "--price", type=float, metavar="USD", help="of a chip for an hour, for the cost"
    )
    parser.add_argument(
        "--storage",
        type=float,
        default=BYTES_PER_SECOND_PER_HOST / 1e9,
        metavar="GB/S",
        help="at which each host writes a checkpoint",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="rank meshes, remats and microbatches, compile the best few",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="compile again what was planned before"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the plan; a step that the compiler refuses ends with `STOPPED`.

    Raises:
      ConfigError: the settings or the pod are wrong, or the step does not fit.
    """
    try:
        return _run(args)
    except CompileError as error:
        line = " ".join(str(error).split())
        print(f"ring: the compiler refuses this step: {line}", file=sys.stderr)
        return status.STOPPED


def _run(args: argparse.Namespace) -> int:
    # The few things that are computed here need no accelerator: one that is there may
    # be training, and a TPU's compiler without a TPU complains on many lines.
    jax.config.update("jax_platforms", "cpu")
    pod, rates = _pod(args), _rates(args)
    config = load_run_config(args)
    console, cache = Console(), default_cache()
    if args.search:
        plan = _search(config, pod, cache, console)
    else:
        with console.waiting(f"compiling the step for {pod.name}; this takes minutes"):
            plan = plan_step(config, pod, cache=cache, fresh=args.fresh)
        if isinstance(plan, Overflow):
            raise _refusal(config, pod, plan, cache, console)
    print_plan(plan, rates, console)
    if args.json:
        words = overrides(config, plan.config)
        found = {"status": status.DONE, "overrides": words, **summary(plan, rates)}
        print(json.dumps(found))
    return status.DONE


def _pod(args: argparse.Namespace) -> Pod:
    if args.topology is None:
        raise ConfigError("plan: name the pod with --topology, such as v5p:4x4x4.")
    return find_pod(args.topology, num_slices=args.slices)


def _rates(args: argparse.Namespace) -> Rates:
    for name in ("storage", "price"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name}={value} must be above 0.")
    return Rates(storage_bytes_per_second=args.storage * 1e9, chip_hour=args.price)


def _search(config: RunConfig, pod: Pod, cache: pathlib.Path, console: Console) -> Plan:
    """Returns the fastest of the plans that were compiled."""
    with console.waiting(f"compiling the best candidates for {pod.name}"):
        tried = list(compile_best(config, pod, cache=cache))
    print_tried(config, tried, console)
    plans = [one.outcome for one in tried if isinstance(one.outcome, Plan)]
    if not plans:
        raise ConfigError(
            f"plan: {pod.name}: no mesh, remat or number of microbatches fits; take a "
            "larger pod, fewer rows, or shorter ones."
        )
    best = min(plans, key=_step_seconds)
    words = " ".join(overrides(config, best.config))
    console.print(f"fastest: {words or 'the settings as they are'}", soft_wrap=True)
    return best


def _step_seconds(plan: Plan) -> float:
    return plan.time.seconds


def _refusal(
    config: RunConfig,
    pod: Pod,
    overflow: Overflow,
    cache: pathlib.Path,
    console: Console,
) -> ConfigError:
    """Says what does not fit, and the cheapest change that does, if there is one."""
    line = say_overflow(config, pod, overflow)
    console.print(line, soft_wrap=True)
    with console.waiting("compiling changes that may fit; each takes minutes"):
        tried = list(compile_until_it_fits(config, pod, overflow, cache=cache))
    print_tried(config, tried, console)
    fit = tried[-1].outcome
    if not isinstance(fit, Plan):
        return ConfigError(
            f"{line} None of the meshes, remats and microbatches that were compiled "
            "fits either; take a larger pod, fewer rows, or shorter ones."
        )
    memory, words = fit.step.memory, " ".join(overrides(config, fit.config))
    return ConfigError(
        f"{line} The cheapest change that fits, compiled to {memory.total / GIB:.2f} "
        f"GiB: {words}"
    )
