"""Refinement: the original teaches the pruned network, on images without labels."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..calibration.checkpoint import Checkpoint, digest_of, fingerprint
from ..calibration.images import Images
from ..calibration.processes import Processes, processes_of
from ..calibration.progress import OnProgress, progress_of
from ..calibration.sample import EVERY, split
from ..capture.graph import tensors_of
from ..capture.precision import plain_mode
from ..errors import InputError
from ..inspection.argument_checks import check_arguments
from ..inspection.model_checks import check_forward, check_model, copy_of, model_device
from ..surgery.proof import tensors_in
from ..text import share
from .augmentation import Augment
from .execution import Execution, Precision, quickest
from .judging import Judge
from .states import States
from .training import Training

STEPS, RATE, BATCH = 1000, 5e-4, 64
"""Default number of steps, peak of the learning rate, and images a step; chosen on held-out images."""

HELD_OUT = 3 * EVERY
"""One image in so many judges; those of a plan are then among the images that judged the plan."""

_JUDGEMENTS = 20
"""How often the held-out change is measured."""
_RUN = "run"
_TRIAL = 4
"""Steps that are timed where the run is given in minutes."""


@dataclass(frozen=True, eq=False, repr=False)
class Refinement:
    """A pruned network that was trained to follow the original; ``print`` it.

    Attributes:
        model: The refined network, a copy; the given one if training did not bring it closer to the original.
        before: Mean squared difference of the outputs from the original's on held-out images, as a share of the
            variance of the original's outputs, before refinement.
        after: The same afterwards.
        points: (step, change on the held-out images) of every judgement.
        images: Numbers of images that were trained on, and held out.
        seconds: Seconds that it took.
        execution: How the networks were run while training.
    """

    model: nn.Module
    before: float
    after: float
    points: tuple[tuple[int, float], ...]
    images: tuple[int, int]
    seconds: float
    execution: Execution

    @property
    def steps(self) -> int:
        """Number of steps that were made."""
        return self.points[-1][0] if self.points else 0

    def __repr__(self) -> str:
        return f"Refinement({share(self.before)} -> {share(self.after)} of the outputs' variance, {self.steps} steps)"

    def __str__(self) -> str:
        trained, judged = self.images
        gained = "" if self.after < self.before else "; training brought it no closer, so the network stays as it was"
        return (
            f"Refined in {self.steps} steps on {trained} images, judged on {judged}: outputs differ from the "
            f"original's by {share(self.after)} of their variance, {share(self.before)} before{gained}; "
            f"{self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class Settings:
    """The arguments of ``reapx.refine``, checked."""

    steps: int | None = None
    minutes: float | None = None
    learning_rate: float = RATE
    batch: int = BATCH
    augment: Augment | None = None
    precision: Precision | None = None
    seed: int = 0
    resume: str | Path | None = None
    progress: bool | None = None
    on_progress: OnProgress | None = None

    def __post_init__(self) -> None:
        names = "learning_rate batch augment precision seed resume progress on_progress".split()
        check_arguments(steps=self.steps, minutes=self.minutes, **{name: getattr(self, name) for name in names})
        if self.steps is not None and self.minutes is not None:
            raise InputError(f"steps={self.steps} and minutes={self.minutes}: give one of them")

    def shared(self) -> dict[str, object]:
        """What must be equal in a call that goes on, and in all processes."""
        names = "steps minutes learning_rate batch precision seed".split()
        return {**{name: getattr(self, name) for name in names}, "augment": self.augment is not None}


@plain_mode()
def refine(
    model: nn.Module,
    original: nn.Module,
    images: object,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    learning_rate: float = RATE,
    batch: int = BATCH,
    augment: Augment | None = None,
    precision: Precision | None = None,
    seed: int = 0,
    resume: str | Path | None = None,
    memory: int | None = None,
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
    distributed: bool = False,
) -> Refinement:
    """Train a pruned network to follow the original, without labels; both stay as they are.

    The loss is the squared difference of the outputs (before a softmax), and of what a few layers read in both
    networks, each as a share of its variance. Batch norms and dropout stay in eval mode. One image in twelve is held
    out: the state that is closest to the original there is returned, and never one that is further away than ``model``.

    Args:
        model: The pruned network in eval mode, from reapx or elsewhere. Its floating-point parameters are trained, only
            those with ``requires_grad`` if there are any.
        original: The network that was pruned, in eval mode.
        images: A tensor (images, ...) or an iterable of batches, as for ``reapx.plan``. The more the better; unlabelled
            ones that nothing was fitted to make the held-out change an honest figure.
        steps: Number of steps; by default 1000.
        minutes: Or the time, from which the number of steps is worked out after a few of them.
        learning_rate: Its peak, after a warm-up and before half a cosine (AdamW).
        batch: Images of a step, over all processes.
        augment: Function from the tensors of a batch to variants of them, of the same shapes. By default pictures
            (N, channels, height, width) are shifted, flipped and mixed in pairs, and other inputs stay as they are. Its
            random numbers should come from torch, which is seeded before each call.
        precision: ``"float32"`` or ``"bfloat16"`` for products; by default what is quicker on this processor.
        seed: Of the random numbers. With ``precision`` and ``steps`` given, the same call gives the same bits on the
            same machine with the same number of threads.
        resume: Folder in which the state is stored. If a call is interrupted, the same call with the same folder
            continues from there, and ends with the same bits.
        memory, progress, on_progress: As for ``reapx.plan``.
        distributed: Whether to share the work with the processes of ``torch.distributed``'s default group, each with
            its own images; the first one's folder counts.

    Returns:
        The refined copy, and how close it is to the original.

    Raises:
        InputError: an argument is not allowed, a network is in train mode or does not run on the images, or their
            outputs differ in number or shape.
        NumericalError: the loss is NaN or infinite.
        CheckpointError: a file in ``resume`` is damaged or cannot be written.

    Source: after G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, with the mean squared error of
        the outputs, and A. Romero et al., "FitNets", ICLR 2015, for the values inside.
    """
    settings = Settings(steps, minutes, learning_rate, batch, augment, precision, seed, resume, progress, on_progress)
    check_arguments(memory=memory, distributed=distributed)
    return run(model, original, parts_of(model, original, images, memory, processes_of(distributed, model)), settings)


def parts_of(
    model: nn.Module, original: nn.Module, images: object, memory: int | None, processes: Processes
) -> tuple[Images, Images]:
    """The images to train on, and those that judge, once both networks have run on two of them.

    Raises:
        InputError: a network is in train mode or does not run on the images, or their outputs differ.
    """
    with processes.together():
        for each in (model, original):
            check_model(each)
        whole = Images(images, model_device(model), memory, model)
        outputs = [[x.shape for x in tensors_in(check_forward(each, whole))] for each in (model, original)]
        if outputs[0] != outputs[1]:
            shapes = [", ".join(str(tuple(shape)) for shape in found) for found in outputs]
            raise InputError(
                f"for two images, the pruned network's outputs have shape {shapes[0]}, the original's {shapes[1]}: "
                "give the network that was pruned as the original"
            )
    whole.meet(processes)
    return split(whole, HELD_OUT)


def run(
    model: nn.Module,
    original: nn.Module,
    parts: tuple[Images, Images],
    settings: Settings,
) -> Refinement:
    """Refine with checked arguments, on images that are split."""
    start = time.perf_counter()
    trained, judged = parts
    processes = trained.processes
    with processes.together():
        student, teacher = copy_of(model), copy_of(original).requires_grad_(False)
    judge = Judge(teacher, judged)
    states = States(model, judge.change(student))
    checkpoint = None if settings.resume is None else _checkpoint(settings, model, original, trained)
    job = _training(student, teacher, trained, judge.variance, settings, checkpoint)
    states.resume(checkpoint, job, processes)
    every = max(-(-job.steps // _JUDGEMENTS), 1)
    progress = progress_of(settings.progress, settings.on_progress, told=processes.rank == 0)
    with job:
        for _ in progress.over(
            range(job.step, job.step if states.ended(job) else job.steps), "refining", unit="step", done=job.step
        ):
            job.advance()
            if job.step % every == 0 or job.step == job.steps:
                states.add(job, judge.change(student))
                states.keep(checkpoint, job)
                if states.ended(job):
                    break
    seconds = time.perf_counter() - start
    points, counts = tuple(states.points), (trained.count, judged.count)
    return Refinement(states.result(), states.before, states.best, points, counts, seconds, job.execution)


def _training(
    student: nn.Module,
    teacher: nn.Module,
    images: Images,
    variance: float,
    settings: Settings,
    checkpoint: Checkpoint | None,
) -> Training:
    """The training, run in the quickest way, with as many steps as were asked for or fit into the minutes."""
    processes = images.processes

    def training(network: nn.Module, steps: int, execution: Execution) -> Training:
        return Training(
            network, teacher, images, variance, steps=steps, learning_rate=settings.learning_rate,
            batch=settings.batch, augment=settings.augment, execution=execution, seed=settings.seed,
        )  # fmt: skip

    known = processes.gather(None if checkpoint is None else checkpoint.values(_RUN))[0]
    if known is not None:
        return training(student, known["steps"], Execution(known["precision"], known["channels_last"]))
    execution = quickest(teacher, images.call, images.example(settings.batch), settings.precision)
    execution = processes.gather(execution)[0]
    steps = STEPS if settings.steps is None else settings.steps
    if settings.minutes is not None:
        with training(copy.deepcopy(student), _TRIAL + 1, execution) as trial:
            trial.advance()
            start = time.perf_counter()
            while trial.step < trial.steps:
                trial.advance()
        each = (time.perf_counter() - start) / _TRIAL
        steps = processes.gather(max(int(60 * settings.minutes / each), 1))[0]
    if checkpoint is not None:
        page = {"steps": steps, "precision": execution.precision, "channels_last": execution.channels_last}
        checkpoint.keep_values(_RUN, page, last=True)
    return training(student, steps, execution)


def _checkpoint(settings: Settings, model: nn.Module, original: nn.Module, images: Images) -> Checkpoint | None:
    """The folder of the first process, for a call that is the same; all processes call this together."""
    assert settings.resume is not None
    key = {
        "work": "refine",
        **settings.shared(),
        "original": digest_of(tensors_of(original)),
        **fingerprint(tensors_of(model), images),
    }
    with images.processes.together():
        return Checkpoint(settings.resume, key) if images.processes.rank == 0 else None
