"""Every error and warning that reapx raises on purpose; each names the layer, the value and the cure."""


class ReapxError(Exception):
    """Base of all errors below; whatever is raised, the user's model is as it was."""


class InputError(ReapxError, ValueError):
    """The images, the model's state or an argument cannot be used."""


class CaptureError(ReapxError):
    """torch.export cannot turn the model into a graph."""


class BudgetError(ReapxError, ValueError):
    """The budget cannot be reached; the message says the smallest that can."""


class NumericalError(ReapxError, ArithmeticError):
    """A factorisation failed, or a value is NaN or infinite."""


class ProofError(ReapxError):
    """The pruned module does not compute what the masked original computes."""


class CheckpointError(ReapxError):
    """A saved result is damaged or does not fit the model."""


class BackendError(ReapxError):
    """No kernels are available for the tensors' device."""


class CompactionWarning(UserWarning):
    """The result stands, but dead nodes are left in it; the message says which and why."""


class CalibrationWarning(UserWarning):
    """The result stands, but more or other calibration images would make it better."""
