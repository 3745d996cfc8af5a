"""What swap refinement gains on real layers: predicted errors of the groups, and accuracy after the refit."""

from __future__ import annotations

import models
from tables import table
from timing import Target, parser, write

import reapx

SWAPS = 100


def compare(target: Target, depth: int, count: int, test_count: int | None) -> dict[str, object]:
    """One CIFAR ResNet at half of its MACs, greedy and refined."""
    images = models.cifar10("train_1", count)[0].to(target.device)
    test, labels = (tensor.to(target.device) for tensor in models.cifar10("test", test_count))
    model = models.cifar_resnet(depth).to(target.device)
    plans, seconds = [], []
    for swaps in (0, SWAPS):
        start = target.now()
        plans.append(reapx.plan(model, images, budget=reapx.MACs(0.5), allocation="uniform", swaps=swaps))
        seconds.append(round(target.now() - start, 2))
    pairs = [
        (greedy.error, refined.error)
        for greedy, refined in zip(plans[0].groups, plans[1].groups, strict=True)
        if greedy.kept < greedy.group.size
    ]
    gains = [1 - refined / greedy for greedy, refined in pairs]
    accuracies = [models.accuracy(plan.apply().model, test, labels) for plan in plans]
    return {
        "network": f"ResNet-{depth}",
        "groups": len(pairs),
        "groups that changed": sum(gain > 0 for gain in gains),
        "largest gain": round(max(gains), 4),
        "mean gain": round(sum(gains) / len(gains), 5),
        "accuracy greedy": accuracies[0],
        "accuracy swapped": accuracies[1],
        "plan seconds": seconds,
    }


def main() -> None:
    """Both networks."""
    arguments = parser(__doc__, "few images of one network")
    options = arguments.parse_args()
    if not models.has_data():
        return
    jobs = [(20, 100, 200)] if options.quick else [(20, 1000, None), (56, 1000, None)]
    target = Target.of(options.device)
    rows = [compare(target, *job) for job in jobs]
    print(table([[str(value) for value in row.values()] for row in rows], list(rows[0])))
    if not options.quick or options.json:
        write("swaps", rows, options.json, target)


if __name__ == "__main__":
    main()
