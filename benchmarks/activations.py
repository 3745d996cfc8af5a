"""Does rectification pay in front of other activations than ReLU?

    python benchmarks/activations.py [--quick] [--json FILE] [--only NAME ...]

ResNet-20 with each activation in the place of its ReLUs, adapted for one epoch of 20 000 images, then pruned with and
without rectification. Rows: accuracy on the test set and the change of the outputs there. What decides whether an
activation is rectified is ``change``, which comes from calibration images. A row that is in the file already is not
measured again.
"""

from __future__ import annotations

from collections.abc import Callable

import models
import torch
import torch.nn.functional as F
from reproduce import recipe
from tables import table
from timing import RESULTS, known_rows, parser, write
from torch import Tensor, nn

import reapx

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu(0.01)": F.leaky_relu,
    "leaky_relu(0.1)": lambda x: F.leaky_relu(x, 0.1),
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "elu": F.elu,
}
SHARES, EPOCHS, BATCH, PEAK = (0.5, 0.35), 1, 128, 0.02


def adapted(activation: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """The pretrained ResNet-20, trained on with another activation."""
    torch.manual_seed(0)
    model = models.cifar_resnet(20)
    for block in model.modules():
        if isinstance(block, models.BasicBlock):
            block.activation = activation
    model.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), PEAK, 0.9, weight_decay=5e-4, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    steps = epochs * (len(images) // BATCH)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step, steps, PEAK)
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        batch = recipe.augment(images[chosen], generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(batch), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval().to(memory_format=torch.contiguous_format)


def main() -> None:
    """Measure what is not known yet."""
    arguments = parser(__doc__, "no adaptation to speak of, few images, one share")
    arguments.add_argument("--only", nargs="*", default=list(ACTIVATIONS), choices=list(ACTIVATIONS))
    options = arguments.parse_args()
    if not models.has_data():
        return
    parts = [models.cifar10(part, 500 if options.quick else None) for part in ("train_1", "train_2")]
    images, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    test, test_labels = models.cifar10("test", 500 if options.quick else None)
    path = options.json or RESULTS / "activations.json"
    rows = [] if options.quick else known_rows(path)
    done = {(row["activation"], row["share"], row["rectify"]) for row in rows}
    shares = SHARES[:1] if options.quick else SHARES
    for name in ["gelu"] if options.quick else options.only:
        wanted = [(share, passes) for share in shares for passes in (0, 2) if (name, share, passes) not in done]
        if not wanted:
            continue
        count = 128 if options.quick else len(images)
        model = adapted(ACTIVATIONS[name], images[:count], labels[:count], EPOCHS)
        outputs = models.outputs_of(model, test)
        for share, passes in wanted:
            plan = reapx.plan(model, images[: 100 if options.quick else 1000], budget=reapx.MACs(share))
            result = plan.apply(rectify=passes)
            pruned = models.outputs_of(result.model, test)
            row = {
                "activation": name,
                "share": share,
                "rectify": passes,
                "base": models.accuracy(model, test, test_labels),
                "accuracy": float((pruned.argmax(1) == test_labels).float().mean()),
                "change": result.change,
                "fresh": models.output_error(pruned, outputs),
            }
            rows.append(row)
            print(row, flush=True)
            if not options.quick:
                write("activations", rows, options.json)
    told = ("activation", "share", "rectify", "base", "accuracy", "change", "fresh")
    cells = [[f"{x:.3f}" if isinstance(x := row[key], float) else str(x) for key in told] for row in rows]
    print(table(cells, told))


if __name__ == "__main__":
    main()
