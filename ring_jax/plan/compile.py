# SPDX-License-Identifier: Apache-2.0
"""Compiles the real training step for a pod that is not there.

    outcome = compile_step(config, find_pod("v5p:4x4x4"), cache=default_cache())

The step is `ring_jax.train`'s own, with the state donated as in training and with the
compiler flags of the chip's preset; libtpu compiles it on any machine, in a process of
its own. What was found is kept under a key of everything that it depends on, so that
the same question is answered at once.
"""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pallas_kernels.schedule.compiler import (
    REPOSITORY,
    CompileError,
    ask_compiler,
    dump_flags,
)
from ring_jax.cluster import find_preset
from ring_jax.config import ConfigError, RunConfig, to_json
from ring_jax.plan.memory import Buffer, Memory
from ring_jax.plan.topology import Pod, Position

PACKAGES = ("pallas_kernels", "ring_jax")
OTHER_ROOMS = {
    "checkpoint",
    "cli",
    "curate",
    "data",
    "evaluate",
    "generate",
    "jail",
    "report",
    "verify",
}
"""Rooms that no step, and nothing said of one, depends on."""
DRAFT = "draft-"
"""Begins the names of folders that are being filled."""
DRAFT_SECONDS = 86_400
"""After which a draft is that of a plan that was killed."""
BUNDLES = "bundles"
"""The folder of a kept answer that holds the dumps of final bundles."""

_NUMBERS = re.compile(
    r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step of training as libtpu compiled it; all of it is exact."""

    hlo: str
    """The scheduled module, as `jax.stages.Compiled.as_text` gives it."""
    memory: Memory
    mesh_shape: Mapping[str, int]
    """Mesh axis -> devices, in the mesh's order."""
    positions: tuple[Position, ...]
    """Of the devices in the order of the flattened mesh."""
    chip: str
    topology: str
    compile_seconds: float
    """Of tracing, lowering and compiling, on the machine that did."""
    compiler_bytes: int
    """The most memory that doing so took there."""
    offloaded_bytes: int
    """That a device keeps in its host's memory during a step."""
    num_tokens: int
    """Of one optimizer step, padding included."""
    undonated: tuple[str, ...]
    """Parts of the state that the step holds twice; none, if the donation holds."""
    folder: pathlib.Path
    """Where this answer is kept; what is derived from it may be kept there, too."""

    @property
    def dump_dir(self) -> pathlib.Path | None:
        """The folder of final bundles, where they were asked for and still are."""
        path = self.folder / BUNDLES
        return path if path.is_dir() else None


@dataclasses.dataclass(frozen=True)
class Overflow:
    """A step that does not fit into a device's HBM, found by the compiler."""

    needed: int
    """Bytes, as the compiler counts them: without the program."""
    available: int
    memory: Memory | None
    """What was assigned; None where the compiler gave up before."""
    mesh_shape: Mapping[str, int]

    @property
    def excess(self) -> int:
        """Bytes above what there is."""
        return self.needed - self.available


type Outcome = CompiledStep | Overflow


def default_cache() -> pathlib.Path:
    """Returns the folder of the user's cache that keeps plans."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "ring_jax" / "plan"


def compile_step(
    config: RunConfig,
    pod: Pod,
    *,
    cache: pathlib.Path,
    with_bundles: bool = False,
    fresh: bool = False,
) -> Outcome:
    """Compiles the step of a run for a pod, or says by how much it does not fit.

    Args:
      config: the run; its files need not exist.
      pod: need not be there.
      cache: folder of kept answers.
      with_bundles: also dumps the final bundles, for the estimate of time; whoever
        asked for them may delete them.
      fresh: compiles even if the answer is kept.

    Raises:
      ConfigError: libtpu is missing or knows no such pod, or the mesh does not fit.
      CompileError: the compiler refused the step, for another reason than memory.
    """
    folder = cache / _key(config, pod)
    if fresh or not _is_kept(folder, with_bundles):
        _compile(config, pod, folder, with_bundles)
    return _read(folder, config, pod)


def _is_kept(folder: pathlib.Path, with_bundles: bool) -> bool:
    if not (folder / "reply.json").exists():
        return False
    reply = json.loads((folder / "reply.json").read_text("utf-8"))
    return reply["kind"] == "overflow" or reply["bundles"] or not with_bundles


def _key(config: RunConfig, pod: Pod) -> str:
    """Returns a digest of all that an answer depends on."""
    preset = find_preset(pod.chip)
    parts = [to_json(config), repr(pod), *preset.flags, *_versions(), _sources()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _versions() -> Iterator[str]:
    for name in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            if name != "libtpu":
                raise
            raise ConfigError(
                "plan: the TPU's compiler (libtpu) is not installed; run "
                "launch/setup.sh tpu, or pip install 'ring_jax[tpu]'."
            ) from None


def _sources() -> str:
    """Returns a digest of the packages' code and tables."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*")):
            parts = path.relative_to(REPOSITORY).parts
            if path.suffix in (".py", ".json") and parts[1] not in OTHER_ROOMS:
                digest.update("/".join(parts).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _compile(
    config: RunConfig, pod: Pod, folder: pathlib.Path, with_bundles: bool
) -> None:
    """Fills the folder, or leaves nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _delete_abandoned_drafts(folder.parent)
    draft = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=DRAFT))
    try:
        _run_compiler(config, pod, draft, with_bundles)
        path = draft / "reply.json"
        reply = json.loads(path.read_text("utf-8"))
        if reply["kind"] == "mistake":
            raise ConfigError(reply["message"])
        path.write_text(json.dumps(reply | {"bundles": with_bundles}), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _delete_abandoned_drafts(cache: pathlib.Path) -> None:
    for draft in cache.glob(f"{DRAFT}*"):
        if time.time() - draft.stat().st_mtime > DRAFT_SECONDS:
            shutil.rmtree(draft, ignore_errors=True)


def _run_compiler(
    config: RunConfig, pod: Pod, folder: pathlib.Path, with_bundles: bool
) -> None:
    flags = list(find_preset(pod.chip).flags)
    if with_bundles:
        (folder / BUNDLES).mkdir()
        flags += dump_flags(folder / BUNDLES)
    request = {
        "config": to_json(config),
        "pod": dataclasses.asdict(pod),
        "folder": str(folder),
    }
    try:
        ask_compiler(
            "ring_jax.plan.compiler_process",
            json.dumps(request).encode(),
            folder / "reply.json",
            flags=flags,
        )
    except CompileError as error:
        raise CompileError(f"plan: {pod.name}: {error}") from error


def _read(folder: pathlib.Path, config: RunConfig, pod: Pod) -> Outcome:
    reply = json.loads((folder / "reply.json").read_text("utf-8"))
    memory = _memory(reply["memory"])
    if reply["kind"] == "overflow":
        needed, available = _needed(reply["message"], memory)
        return Overflow(needed, available, memory, reply["mesh_shape"])
    assert memory is not None, "a compiled step has its memory"
    with gzip.open(folder / "step.hlo.gz", "rt", encoding="utf-8") as file:
        hlo = file.read()
    return CompiledStep(
        hlo=hlo,
        memory=memory,
        mesh_shape=reply["mesh_shape"],
        positions=tuple(Position(*place) for place in reply["positions"]),
        chip=pod.chip,
        topology=pod.topology,
        compile_seconds=reply["compile_seconds"],
        compiler_bytes=reply["compiler_bytes"],
        offloaded_bytes=reply["offloaded_bytes"],
        num_tokens=config.train.global_batch_size * config.train.seq_len,
        undonated=tuple(reply["undonated"]),
        folder=folder,
    )


def _memory(tree: dict[str, Any] | None) -> Memory | None:
    if tree is None:
        return None
    largest = tuple(Buffer(**buffer) for buffer in tree["largest"])
    return Memory(tree["categories"], tree["limit"], largest)


def _needed(message: str, memory: Memory | None) -> tuple[int, int]:
    """Returns bytes needed and available, to the byte where memory was assigned."""
    match = _NUMBERS.search(message)
    if memory is not None:
        return memory.total, memory.limit
    if match is None:
        raise CompileError(f"plan: {message}")
    needed, needed_unit, available, available_unit = match.groups()
    return (
        int(float(needed) * _UNITS[needed_unit]),
        int(float(available) * _UNITS[available_unit]),
    )
