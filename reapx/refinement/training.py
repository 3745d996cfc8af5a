"""The steps of refinement: a batch of variants, what both networks make of it, and one step of AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn

from ..calibration.images import Images
from ..capture.precision import exact
from ..errors import NumericalError
from .augmentation import Augment, seeded, variants
from .execution import Execution
from .features import Features
from .judging import floating

WARM_UP = 0.05
"""Share of the steps before the learning rate's peak."""


class Training:
    """A pruned network that learns to follow the original; norms stay in eval mode.

    A context: inside it, what layers read is compared as well. Every random number depends on the seed and the step
    alone, so that a run can go on anywhere.

    Attributes:
        step: Number of steps that were made.
        steps: Number of all steps.
        execution: How the networks are run.
        values: Name -> parameter, while it is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        original: nn.Module,
        images: Images,
        variance: float,
        *,
        steps: int,
        learning_rate: float,
        batch: int,
        augment: Augment | None,
        execution: Execution,
        seed: int,
    ) -> None:
        """Of ``model``, all floating-point parameters are trained, or those with ``requires_grad`` if there are any.

        Args:
            variance: Of the original's outputs, by which differences are divided.
            batch: Images of each step, over all processes.
        """
        found = {name: value for name, value in model.named_parameters() if value.is_floating_point()}
        self.values = {name: value for name, value in found.items() if value.requires_grad} or found
        for value in self.values.values():
            value.requires_grad_()
        self.step, self.steps, self.execution = 0, steps, execution
        self._model, self._original = (execution.lay_out(each) for each in (model, original))
        self._images, self._variance = images, variance
        self._rate, self._augment, self._seed = learning_rate, augment, seed
        processes = images.processes
        self._batch = max(min(batch // processes.size, sum(images.lengths[processes.rank])), 1)
        self._optimizer = torch.optim.AdamW(self.values.values(), learning_rate, weight_decay=0.0)

    def __enter__(self) -> Training:
        self._features = Features(self._model, self._original)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._features.close()

    def advance(self) -> None:
        """Make the next step.

        Raises:
            NumericalError: the loss is NaN or infinite.
            InputError: ``augment`` returned something else than variants.
        """
        loss = self._loss(self._inputs())
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._exchange(loss.detach())
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * _share_of_rate(self.step, self.steps)
        self._optimizer.step()
        self.step += 1

    def _inputs(self) -> tuple[Tensor, ...]:
        processes = self._images.processes
        with processes.together(), seeded(self._seed_of_step(), self._images.device):
            return self.execution.inputs(variants(self._drawn(), self._augment))

    def _seed_of_step(self) -> int:
        processes = self._images.processes
        return self._seed + 1 + self.step * processes.size + processes.rank

    @exact()
    def _loss(self, inputs: tuple[Tensor, ...]) -> Tensor:
        self._features.forget()
        with self.execution.casting(self._images.device):
            with torch.no_grad():
                wanted = floating(self._images.call(self._original, inputs))
            found = floating(self._images.call(self._model, inputs))
        errors = [(ours.float() - theirs.float()).square().sum() for ours, theirs in zip(found, wanted, strict=True)]
        loss = torch.stack(errors).sum() / (len(inputs[0]) * self._variance)
        inside = self._features.error()
        return loss if inside is None else loss + inside

    def _exchange(self, loss: Tensor) -> None:
        """Take the mean of the gradients over all processes, and refuse what is not finite."""
        processes = self._images.processes
        gradients = [value.grad for value in self.values.values() if value.grad is not None]
        total = loss.double()
        processes.sum(total, *gradients)
        if not math.isfinite(float(total)):
            raise NumericalError(
                f"step {self.step}: the loss is {float(total)}; give a smaller learning_rate than {self._rate}"
            )
        if processes.size > 1:
            for gradient in gradients:
                gradient.div_(processes.size)

    def _drawn(self) -> tuple[Tensor, ...]:
        """This process's images of the step: all of them in random order, again and again."""
        lengths = torch.tensor(self._images.lengths[self._images.processes.rank])
        ends, first = lengths.cumsum(0), self.step * self._batch
        count = int(ends[-1])
        epochs = range(first // count, (first + self._batch - 1) // count + 1)
        order = torch.cat([_permutation(count, self._seed, epoch) for epoch in epochs])
        chosen = order[first - epochs[0] * count :][: self._batch]
        batches = torch.searchsorted(ends, chosen, right=True)
        parts = []
        for index in sorted(set(batches.tolist())):
            start = ends[index] - lengths[index]
            parts.append(self._images.pick(index, chosen[batches == index] - start))
        return tuple(torch.cat(values) for values in zip(*parts, strict=True))

    def state(self) -> dict[str, Tensor]:
        """Copies of the parameters and of what the optimiser knows of them."""
        found = {}
        for name, value in self.values.items():
            known = self._optimizer.state.get(value, {})
            found[f"value/{name}"] = value.detach().clone(memory_format=torch.contiguous_format)
            for key in ("exp_avg", "exp_avg_sq"):
                own = known.get(key, torch.zeros_like(value))
                found[f"{key}/{name}"] = own.detach().clone(memory_format=torch.contiguous_format)
        return found

    def restore(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Go on from a state after so many steps."""
        self.step = step
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(state[f"value/{name}"])
                own = {key: torch.empty_like(value).copy_(state[f"{key}/{name}"]) for key in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[value] = {"step": torch.tensor(float(step)), **own}


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63))


def _share_of_rate(step: int, steps: int) -> float:
    """Share of the peak: linear up to it, then half a cosine down to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
