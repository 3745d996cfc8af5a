"""Reconstruction: layers are refitted by least squares, one after another from the front of the network to its end.

Five selections meet in the refit of one layer. Example: in the original network, the layer is a 1x1 convolution with 4
outputs and 3 input channels. It ends, behind a batch norm, in a residual add.

- Kept outputs, [0, 2, 3]: surgery removed output 1. They pick the channels of the target, and the weight has 3 rows.
- ``columns``, [0, 2]: features that the layer reads in the end. Channel 1 is still in the network that is refitted (a
  group that leaves as a whole keeps one unit until the end), but its column is zero before and after the fit.
- ``usable``, [True, False, True]: rows whose norm scale can be divided by. With scales [1, 1e-6, 2], the target
  (original sum - pruned shortcut) is carried back through the norm, (target - shift) / scale, which is meaningless in
  row 1. So row 1 keeps its old weights and bias; only its column 1 becomes zero. In front of no residual add, or
  without a norm, all rows are usable.
- ``intercept``: whether a constant can be fitted, since the layer has a bias, or a norm whose running mean takes it.
  If so, moments are centred; if not, the fit goes through the origin.
- Rectified entries, for each image and position: where the fit and its target are both negative in front of a ReLU, the
  residual counts as zero.

The fit solves for rows 0 and 2 on columns 0 and 2, and writes a weight of shape (3, 3) with zeros in column 1.
"""
