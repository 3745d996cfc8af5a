"""Selection: which channels of a group leave, and in which order.

All methods use the same second moments of the consumers' inputs. Whatever the method, the weights are then refitted
by the same least squares.
"""
