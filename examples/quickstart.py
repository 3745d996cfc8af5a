"""Half of a small network's MACs removed, without labels and without retraining; about ten seconds.

Run it with ``python examples/quickstart.py``; it needs ``pip install "reapx[demo]"`` for its digits.
"""

from __future__ import annotations

import reapx
from reapx.demo import DigitNet, read_digits, train

digits = read_digits(seed=0, count=1500)
model = train(digits, epochs=2, seed=0)  # any trained nn.Module in eval mode will do
images = digits.train_images[:300]  # no labels


def accuracy(network: object) -> float:
    """Share of the test digits that a network names rightly."""
    guesses = network(digits.test_images).argmax(1)  # type: ignore[operator]
    return float((guesses == digits.test_labels).float().mean())


plan = reapx.plan(model, images, budget=reapx.MACs(0.5))  # nothing is touched
print(plan, end="\n\n")
result = plan.apply()  # a smaller module, refitted and proved
print(result, end="\n\n")
print(f"accuracy {accuracy(model):.1%} before, {accuracy(result.model):.1%} after")

result.save("digits-half", overwrite=True)
loaded = reapx.load(DigitNet().eval(), "digits-half")
assert accuracy(loaded) == accuracy(result.model)
