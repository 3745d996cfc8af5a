"""A demonstration on handwritten digits: what each step of pruning gives, at several budgets."""

from .comparison import run_demo
from .digits import DigitNet, read_digits, train

__all__ = ["DigitNet", "read_digits", "run_demo", "train"]
