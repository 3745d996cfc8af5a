"""All errors and warnings of reapx; each message names the layer or argument, the value and the cure."""


class ReapxError(Exception):
    """Base class of all errors of reapx; when one is raised, the user's model is unchanged."""


class InputError(ReapxError, ValueError):
    """The images, the model's state or an argument cannot be used."""


class CaptureError(ReapxError):
    """torch.export cannot turn the model into a graph."""


class BudgetError(ReapxError, ValueError):
    """The budget is invalid or cannot be reached; the message names the smallest that can be reached."""


class NumericalError(ReapxError, ArithmeticError):
    """A factorisation failed, or a value is NaN or infinite."""


class ProofError(ReapxError):
    """The pruned module does not compute what the masked original computes."""


class CheckpointError(ReapxError):
    """A saved result is damaged or does not fit the model."""


class BackendError(ReapxError):
    """No kernels are available for the tensors' device."""


class CompactionWarning(UserWarning):
    """The result is valid but contains dead nodes; the message names them and says why they stay."""


class CalibrationWarning(UserWarning):
    """The result is valid, but more or other calibration images would improve it."""
