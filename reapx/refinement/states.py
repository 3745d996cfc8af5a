"""What a refinement has reached: the changes that were judged, the best state, and their place on the disk."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..calibration.checkpoint import Checkpoint
from ..calibration.processes import Processes
from .training import Training

PATIENCE = 4
"""In the second half of the steps, so many judgements without a better one end the run."""

_FILE, _BEST, _POINTS = "refinement", "best/", "points"


class States:
    """The judged states of one run, of which the best one counts.

    Attributes:
        before: Held-out change of the network as it was given.
        best: The smallest change so far.
        points: (step, change) of every judgement.
    """

    def __init__(self, model: nn.Module, before: float) -> None:
        self.before = self.best = before
        self.points: list[tuple[int, float]] = []
        self._model = model
        self._values: dict[str, Tensor] = {}

    def add(self, job: Training, change: float) -> None:
        """Note a judgement of the state that training is in."""
        self.points.append((job.step, change))
        if change < self.best:
            self.best = change
            self._values = {name: value.detach().clone() for name, value in job.values.items()}

    def ended(self, job: Training) -> bool:
        """Whether all steps are made, or going on is in vain."""
        late = [change for step, change in self.points if step > job.steps // 2]  # before, the rate is high
        vain = len(late) > PATIENCE and min(late[-PATIENCE:]) >= min(late[:-PATIENCE])
        return job.step >= job.steps or vain

    def result(self) -> nn.Module:
        """A copy of the given network with the best values; in the layout of memory that it came in."""
        found = copy.deepcopy(self._model)
        own = dict(found.named_parameters())
        with torch.no_grad():
            for name, value in self._values.items():
                own[name].copy_(value)
        return found

    def keep(self, checkpoint: Checkpoint | None, job: Training) -> None:
        """Store everything, if it is time to."""
        if checkpoint is None:
            return
        found = job.state()
        found |= {_BEST + name: value.contiguous() for name, value in self._values.items()}
        found[_POINTS] = torch.tensor(self.points, dtype=torch.float64)
        checkpoint.keep_tensors(_FILE, job.step, found, self.ended(job))

    def resume(self, checkpoint: Checkpoint | None, job: Training, processes: Processes) -> None:
        """Go on from what the first process's folder holds, if it holds anything; all processes call this together."""
        step, found = (0, {}) if checkpoint is None else checkpoint.tensors(_FILE)
        step = processes.gather(step)[0]
        if step == 0:
            return
        kinds = processes.gather({name: (value.shape, value.dtype) for name, value in found.items()})[0]
        whole = {
            name: processes.share(found.get(name, torch.empty(shape, dtype=dtype)))
            for name, (shape, dtype) in kinds.items()
        }
        job.restore(step, whole)
        self._values = {name.removeprefix(_BEST): value for name, value in whole.items() if name.startswith(_BEST)}
        self.points = [(int(at), float(change)) for at, change in whole[_POINTS].tolist()]
        self.best = min(self.before, *(change for _, change in self.points))
