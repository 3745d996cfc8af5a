"""Selection: which channels of a group leave, and in which order.

All methods see the same second moments of the consumers' inputs, and the refits after removal are the same least
squares whatever the method.
"""
