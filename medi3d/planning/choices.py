"""How each open key is chosen: one function a key, from what was chosen before to a value and the reason for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from medi3d.config import TaskConfig
from medi3d.config.schema import FAMILIES_3D
from medi3d.errors import ConfigError
from medi3d.planning.machine import Machine
from medi3d.planning.rules import RULES
from medi3d.planning.shapes import Shapes
from medi3d.planning.sizes import count_stages, find_grain, fit_patch
from medi3d.planning.trial import TrialNetwork
from medi3d.types import IntTriple

Choice = tuple[Any, str]
"""A value, and why, in one sentence."""


@dataclass
class Situation:
    """What choices are made from.

    Attributes:
        task: with what was chosen so far.
        data: the prepared cases.
        machine: where training runs.
    """

    task: TaskConfig
    data: Shapes
    machine: Machine
    _trials: dict[tuple[int | None, IntTriple | None], TrialNetwork] = field(default_factory=dict)

    @property
    def whole_network(self) -> TrialNetwork:
        """The network with all the stages that its backbone has, for its strides and the sizes that it takes."""
        return self._try(None, None)

    def choose_stages_for(self, patch_size: IntTriple) -> int:
        """Return how many stages suit a patch: those that the task says, or as many as keep some voxels."""
        config = self.task.model
        if config.stages is not None:
            return config.stages
        # Another network halves its maps as often as patch edges can be halved.
        strides = self.whole_network.strides or [(2**level,) * 3 for level in range(RULES.other_grain.bit_length())]
        return count_stages(strides, patch_size, RULES.coarsest_voxels[self.task.kind])

    def needed_bytes(self, patch_size: IntTriple, batch_size: int) -> tuple[int, int]:
        """Return what stays in memory over the steps, and what a step needs beside it."""
        slices = self.whole_network.slices
        # A network for slices of one size is made for the patch; any other is the same for every patch.
        trial = self._try(
            self.choose_stages_for(patch_size), patch_size if slices is not None and slices.step is None else None
        )
        return trial.fixed_bytes, trial.step_bytes(patch_size, batch_size)

    def _try(self, stages: int | None, patch_size: IntTriple | None) -> TrialNetwork:
        if (stages, patch_size) not in self._trials:
            task = self.task
            model, train = replace(task.model, stages=stages), replace(task.train, patch_size=patch_size)
            self._trials[stages, patch_size] = TrialNetwork(replace(task, model=model, train=train))
        return self._trials[stages, patch_size]


def choose_precision(situation: Situation) -> Choice:
    """Take bfloat16 where the hardware has it."""
    machine = situation.machine
    kind = "GPU" if machine.device == "cuda" else "CPU"
    if machine.bf16:
        return "bf16", f"this {kind} computes in bfloat16 ({machine.bf16}), faster and in less memory than in float32"
    return "no", f"float32: this {kind} has no hardware for bfloat16, which is slower without"


def choose_depth_plan(situation: Situation) -> Choice:
    """Keep depth until voxels are isotropic, where slices lie far apart."""
    task, data = situation.task, situation.data
    if task.model.network != "inflated":
        return "symmetric", f"{task.model.network} treats depth as the plane"
    if task.model.backbone.partition(":")[0] in FAMILIES_3D:
        return "symmetric", f"{task.model.backbone} is a network in 3D, with strides along depth of its own"
    spacing = " × ".join(f"{value:.3g}" for value in data.spacing_mm)
    if isinstance(task.preprocess.spacing_mm, str):
        return "symmetric", "each case keeps its own voxel size, and no one plan along depth suits all of them"
    if data.anisotropy > RULES.anisotropy:
        return "anisotropic", (
            f"slices lie {data.anisotropy:.2g} times as far apart as their pixels are wide ({spacing} mm, D × H × W), "
            "so depth is kept until the voxels are isotropic"
        )
    return "symmetric", f"voxels of {spacing} mm (D × H × W) are near enough to cubes to treat depth as the plane"


def choose_patch_size(situation: Situation) -> Choice:
    """Take the median case, or what memory and, on a CPU, time allow of it."""
    task, data, machine = situation.task, situation.data, situation.machine
    slices = situation.whole_network.slices
    grain, whole = find_grain(task, slices), data.median
    if slices is not None and slices.step is None:
        whole = (whole[0], *slices.size)
    if (
        task.kind == "classification"
        and task.preprocess.crop == "cube"
        and (slices is None or slices.allows(whole[1:]))
    ):
        _check_memory(situation, whole)
        return whole, f"the prepared cube of {_product(whole)} voxels"
    batch = task.train.batch_size or RULES.smallest_batch
    limit = RULES.cpu_step_voxels / batch if machine.device == "cpu" else math.inf
    patch = fit_patch(whole, grain, limit)
    limited_by = f"{batch} patches of {RULES.cpu_step_voxels // batch:,} voxels, a few seconds a step on a CPU"
    while (needed := sum(parts := situation.needed_bytes(patch, batch))) > machine.memory_bytes:
        share = max(0.5, min(0.95, (machine.memory_bytes - parts[0]) / parts[1]))
        limited_by = f"{machine.memory_bytes / 1e9:.2g} GB of memory for batches of {batch}"
        smaller = fit_patch(whole, grain, share * math.prod(patch))
        if smaller == patch:
            _refuse(situation, patch, batch, needed)
        patch = smaller
    of_what = f"the median case of {_product(data.median)} voxels"
    if slices is not None and slices.step is None:
        return patch, f"{task.model.backbone} takes slices of {slices}; depth follows {of_what}"
    if all(edge >= most for edge, most in zip(patch, whole, strict=True)):
        return patch, f"{of_what}, rounded up to multiples of {_product(sorted(set(grain)))}"
    return patch, f"the largest patch in proportion to {of_what} that allows for {limited_by}"


def choose_stages(situation: Situation) -> Choice:
    """Take the stages whose maps are no smaller than a few voxels."""
    task = situation.task
    stages, least = situation.choose_stages_for(task.patch_size), RULES.coarsest_voxels[task.kind]
    strides = situation.whole_network.strides
    if not strides:
        return (
            stages,
            f"halvings that keep at least {least} voxels of the patch's plane, {_product(task.patch_size[1:])}",
        )
    kept = " × ".join(str(-(-n // s)) for n, s in zip(task.patch_size[1:], strides[stages - 1][1:], strict=True))
    reason = f"of {len(strides)} stages, the coarsest one used leaves {kept} voxels of the patch's plane"
    return stages, reason if stages == len(strides) else f"{reason}, and the next one would leave fewer than {least}"


def choose_batch_size(situation: Situation) -> Choice:
    """Take as many patches as memory, the amount of data and, on a CPU, time allow, and two at least."""
    task, data, machine = situation.task, situation.data, situation.machine
    voxels = math.prod(task.patch_size)
    fixed, step = situation.needed_bytes(task.patch_size, RULES.smallest_batch)
    each = step / RULES.smallest_batch
    limits = {
        f"more would not fit in {machine.memory_bytes / 1e9:.2g} GB of memory, at {each / 1e9:.2g} GB a patch and "
        f"{fixed / 1e9:.2g} GB for weights and optimiser": (machine.memory_bytes - fixed) / each,
        f"more would cover over {RULES.batch_share:.0%} of the {data.voxels / 1e6:.3g} million voxels of all cases": (
            RULES.batch_share * data.voxels / voxels
        ),
    }
    if machine.device == "cpu":
        reason = f"on a CPU, more steps learn faster than batches of over {RULES.cpu_batch_voxels:,} voxels"
        limits[reason] = RULES.cpu_batch_voxels / voxels
    reason, most = min(limits.items(), key=lambda limit: limit[1])
    if most >= RULES.smallest_batch:
        return int(most), reason
    needed = fixed + step
    if needed > machine.memory_bytes:
        _refuse(situation, task.patch_size, RULES.smallest_batch, needed)
    return RULES.smallest_batch, f"the smallest: {reason}"


def choose_learning_rate(situation: Situation) -> Choice:
    """Scale the optimiser's rate with the root of the batch, as the noise of its gradient (Krizhevsky 2014)."""
    config = situation.task.train
    batch = situation.task.batch_size * config.accumulate
    base, most = RULES.learning_rate[config.optimizer], RULES.most_learning_rate[config.optimizer]
    rate = float(f"{min(most, base * math.sqrt(batch / RULES.smallest_batch)):.2g}")
    reason = f"{base:g} of {config.optimizer} at batches of {RULES.smallest_batch}"
    if batch == RULES.smallest_batch:
        return rate, reason
    limit = f", at most {most:g}" if rate >= most else ""
    return rate, f"{reason}, times √({batch}/{RULES.smallest_batch}) for batches of {batch}{limit}"


def choose_steps(situation: Situation) -> Choice:
    """See the training cases a number of times."""
    task, data, device = situation.task, situation.data, situation.machine.device
    batch = task.batch_size * task.train.accumulate
    patches = max(1.0, data.voxels / data.cases / math.prod(task.patch_size))
    wanted = round(RULES.passes[device] * data.training_cases * patches / batch)
    steps = min(max(wanted, RULES.fewest_steps[device]), RULES.most_steps[device])
    reason = (
        f"{RULES.passes[device]} passes over {data.training_cases} training cases of {patches:.3g} patches each, in "
        f"batches of {batch}, are {wanted} steps"
    )
    if steps != wanted:
        bound = "fewest" if steps > wanted else "most"
        reason += f"; {steps} are the {bound} on a {'GPU' if device == 'cuda' else 'CPU'}"
    if task.train.budget is not None:
        reason = f"not used: train.budget {task.train.budget} ends the run; without it, {reason}"
    return steps, reason


CHOICES: dict[str, Callable[[Situation], Choice]] = {
    "train.precision": choose_precision,
    "model.depth_plan": choose_depth_plan,
    "train.patch_size": choose_patch_size,
    "model.stages": choose_stages,
    "train.batch_size": choose_batch_size,
    "train.learning_rate": choose_learning_rate,
    "train.steps": choose_steps,
}
"""Planned key → how it is chosen, in this order: later choices follow from earlier ones."""


def _check_memory(situation: Situation, patch_size: IntTriple) -> None:
    batch = situation.task.train.batch_size or RULES.smallest_batch
    needed = sum(situation.needed_bytes(patch_size, batch))
    if needed > situation.machine.memory_bytes:
        _refuse(situation, patch_size, batch, needed)


def _refuse(situation: Situation, patch_size: IntTriple, batch: int, needed: int) -> None:
    machine = situation.machine
    raise ConfigError(
        f"{situation.task.name}: a step of {batch} patches of {_product(patch_size)} voxels needs about "
        f"{needed / 1e9:.2g} GB, and training may use {machine.memory_bytes / 1e9:.2g} GB ({machine.source}); free "
        "memory, set model.backbone to a smaller network, train.checkpoint_activations to true, or train.batch_size "
        "and train.patch_size yourself"
    )


def _product(edges: Any) -> str:
    return " × ".join(map(str, edges))
