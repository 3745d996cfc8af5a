"""Recurrent layers: the channels that they read leave, their hidden sizes stay."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from . import Case


class Read(nn.Module):
    """A convolution over a sequence, a recurrent layer that reads its channels, and a linear one."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 10, 3, padding=1)
        self.rnn = kind(10, 5, **options)
        self.last = nn.Linear(10 if options.get("bidirectional") else 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        batch_first = self.rnn.batch_first
        y, _ = self.rnn(x.transpose(1, 2) if batch_first else x.permute(2, 0, 1))
        return self.last(y).mean(1 if batch_first else 0)


def _case(kind: type[nn.RNNBase], **options: Any) -> Case:
    return Case(lambda: Read(kind, **options), (4, 6), {"conv": 10}, "hidden sizes of recurrent layers stay", 0.8)


CASES = {
    "lstm": _case(nn.LSTM, batch_first=True),
    "lstm both ways": _case(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True),
    "gru both ways": _case(nn.GRU, bias=False, bidirectional=True),
    "rnn": _case(nn.RNN, nonlinearity="relu", batch_first=True),
}
