"""Decay of an unused ReLU node's weights under Adam + L2, AdamW and momentum SGD, next to what the formulas say.

    python benchmarks/reproduce/adam_decay.py [--plot FILE] [--quick] [--device cpu|cuda] [--json FILE]

Figure 4 of the second report (Yaguchi et al., ICMLA 2018): where the loss does not pull, Adam with the penalty in its
gradient shrinks weights doubly exponentially, ln(w_t / w_0) ≈ −κ (β₂^(−t/2) − 1), the others only exponentially.
The step is lr·λw / √v, and while v is only the fading memory β₂^t v_0 of older gradients, the sum of the steps gives
κ = lr·λ / (√v_0 (β₂^(−1/2) − 1)). AdamW shrinks by (1 − lr·λ)^t and momentum SGD as its two roots say. AMSGrad, whose v
never fades, by exp(−lr·λ·t / √v_0).

- ``MNIST``: 784-64-64-10, trained with each optimiser on 938 batches of 128 images. Then the biases of ``IDLE`` nodes
  of the first layer are set so low that no image fires them, which every later step checks; all else goes on, optimiser
  state included, with batches of 16. Penalised are the weights, not the biases. The formula is that of each single
  weight, from the state that was found; the ratio is of the norm of a node's incoming weights, and of the node that
  shrank least. It begins late, for Adam's correction of its beginning is not over after 938 batches, which the formula
  does not know. Under SGD at 0.1 the network unlearns all with the small batches; the idle nodes do not notice.
- ``weight``: one weight of 0.05 without gradient, its v_0 left by random gradients of size ``PAST``, which was picked
  such that Adam + L2 takes the 12.4k, 7.8k, 4.8k steps to 1e-6 of an earlier simulation. β₁ = 0 shows that what the
  formula misses is momentum: with it, weights shrink a little faster than said, though never faster than √β₁ a step.
  ``w_0 = 2`` is about 2 lr / (1 − β₂), where a weight's own penalty begins to rule v, whatever λ: it shrinks later.

Everything is float64; ``--device`` is the network's, single weights stay on the CPU. Three seeds (initial weights, data
order, past gradients) run side by side in one tensor.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import models
from decay_curves import FLOOR, LEVELS, POINTS, Row, norms, summary
from tables import table
from timing import Target, parser, write

import reapx

SEEDS = (0, 1, 2)
SIZES = (784, 64, 64, 10)
IDLE = 8
BATCH, IDLE_BATCH, WARM_UP, STEPS = 128, 16, 938, 20000
STRENGTHS = (1e-5, 1e-4, 5e-4)
PAST = 7.4e-4
ADAM, ADAMW, SGD, SLOW_SGD, AMSGRAD, PLAIN = (
    "Adam + L2", "AdamW", "SGD 0.9, lr 0.1", "SGD 0.9, lr 0.01", "Adam + L2, AMSGrad", "Adam + L2, β1 = 0",
)  # fmt: skip
METHODS: dict[str, Callable[[list[nn.Parameter], float], torch.optim.Optimizer]] = {
    ADAM: lambda weights, l2: reapx.adam_l2(weights, lr=1e-3, l2=l2, fused=True),
    ADAMW: lambda weights, decay: torch.optim.AdamW(weights, lr=1e-3, weight_decay=decay, fused=True),
    SGD: lambda weights, l2: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=l2, fused=True),
    SLOW_SGD: lambda weights, l2: torch.optim.SGD(weights, lr=0.01, momentum=0.9, weight_decay=l2, fused=True),
    # adam_l2 refuses it.
    AMSGRAD: lambda weights, l2: torch.optim.Adam(weights, lr=1e-3, weight_decay=l2, amsgrad=True, fused=True),
    PLAIN: lambda weights, l2: reapx.adam_l2(weights, lr=1e-3, l2=l2, betas=(0.0, 0.999), fused=True),
}


def strengths(method: str) -> tuple[float, ...]:
    """AdamW has PyTorch's default too: its decay knows no √v, so that an equal number is a weaker one."""
    return (*STRENGTHS, 1e-2) if method == ADAMW else STRENGTHS


class Network:
    """One fully connected ReLU network per seed, all in one set of tensors (seed, input, output)."""

    def __init__(self, device: torch.device) -> None:
        self.draws = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        self.weights, self.biases = [], []
        for inputs, outputs in itertools.pairwise(SIZES):
            drawn = [torch.rand(inputs + 1, outputs, generator=g, dtype=torch.float64) for g in self.draws]
            # As nn.Linear begins.
            start = ((2 * torch.stack(drawn) - 1) / math.sqrt(inputs)).to(device)
            self.weights.append(nn.Parameter(start[:, :-1].contiguous()))
            self.biases.append(nn.Parameter(start[:, -1:].contiguous()))

    def __call__(self, x: Tensor) -> Tensor:
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x.relu() if index else x, weight)
        return x

    def gradients(self, images: Tensor, labels: Tensor, batch: int) -> None:
        """Of each network's own mean loss, on a random batch of its own."""
        picks = torch.stack([torch.randint(len(images), (batch,), generator=g) for g in self.draws]).to(images.device)
        outputs = self(images[picks].double()).flatten(0, 1)
        loss = nn.functional.cross_entropy(outputs, labels[picks].flatten(), reduction="sum") / batch
        for parameter in (*self.weights, *self.biases):
            parameter.grad = None
        loss.backward()

    @torch.no_grad()
    def silence(self, images: Tensor) -> None:
        """Push the first nodes' biases down, with room for what momentum still does to their weights."""
        weight = self.weights[0][..., :IDLE]
        peak = torch.stack([part.double() @ weight for part in images.split(2000)]).amax((0, 2))
        self.biases[0][..., :IDLE] = -10 * peak.clamp_min(1).unsqueeze(1)

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> list[float]:
        """Of each seed's network."""
        hits = self(images.double().expand(len(SEEDS), -1, -1)).argmax(2) == labels
        return [round(share, 4) for share in hits.double().mean(1).tolist()]


def on_mnist(method: str, strength: float, data: Sequence[Tensor], warm_up: int, steps: int, target: Target) -> Row:
    """Train, silence some nodes, train on, and follow these nodes' weights."""
    began = target.now()
    images, labels, test_images, test_labels = data
    network = Network(target.device)
    optimiser = METHODS[method](network.weights, strength)
    optimiser.add_param_group({"params": network.biases, "weight_decay": 0.0})
    for _ in range(warm_up):
        network.gradients(images, labels, BATCH)
        optimiser.step()
    network.silence(images)
    first = network.weights[0]
    start = {name: value[..., :IDLE].clone() for name, value in optimiser.state[first].items() if value.ndim}
    start["weight"] = first.detach()[..., :IDLE].clone()
    sizes = [norms(start["weight"])]
    for step in range(1, steps + 1):
        network.gradients(images, labels, IDLE_BATCH)
        assert first.grad is not None and not first.grad[..., :IDLE].any(), f"an idle node fired in step {step}"
        optimiser.step()
        sizes.append(norms(first.detach()[..., :IDLE]))
    row = {"part": "MNIST", "method": method, "strength": strength, "w_0": None}
    row |= summary(torch.stack(sizes).cpu(), optimiser, {name: value.cpu() for name, value in start.items()})
    row["√v_0"] = math.sqrt(start["exp_avg_sq"].mean()) if "exp_avg_sq" in start else None
    row["accuracy"] = network.accuracy(test_images, test_labels)
    return {**row, "seconds": round(target.now() - began, 1)}


def of_one_weight(method: str, strength: float, size: float, steps: int) -> Row:
    """A weight that only the penalty moves; what rules Adam's v where the weight has fallen to 1e-6."""
    draws = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    past = torch.stack([torch.randn(10000, generator=g, dtype=torch.float64) for g in draws]).mul_(PAST)
    left = (past.square() * 0.001 * 0.999 ** torch.arange(9999, -1, -1, dtype=torch.float64)).sum(1)
    weight = nn.Parameter(torch.full((len(SEEDS), 1, 1), size, dtype=torch.float64))
    weight.grad = torch.zeros_like(weight)
    optimiser = METHODS[method]([weight], strength)
    zero, old = torch.zeros_like(weight), left.view_as(weight)
    start = {"weight": weight.detach().clone(), "momentum_buffer": zero}
    if "betas" in optimiser.param_groups[0]:
        start |= {"exp_avg": zero, "exp_avg_sq": old, "max_exp_avg_sq": old}
    state = {name: value.clone() for name, value in start.items() if name != "weight"}
    # So many steps ago that Adam's correction of its beginning is over.
    optimiser.state[weight] = {**state, "step": torch.tensor(1e6)}
    sizes, seconds = [norms(weight.detach())], [left]
    for _ in range(steps):
        optimiser.step()
        sizes.append(norms(weight.detach()))
        if "exp_avg_sq" in start:
            seconds.append(optimiser.state[weight]["exp_avg_sq"].flatten().clone())
    row = {"part": "weight", "method": method, "strength": strength, "w_0": size}
    row |= summary(torch.stack(sizes), optimiser, start)
    at = row["steps"][f"{LEVELS[-1]:g}"]
    if at is not None and method in (ADAM, PLAIN):
        v, memory = seconds[round(at[0])].mean(), left.mean() * 0.999 ** at[0]
        row["at 1e-6"] = {
            "own share of v": float(f"{1 - memory / v:.3g}"),
            "eps / √v": float(f"{optimiser.param_groups[0]['eps'] / v.sqrt():.3g}"),
        }
    return row


def show(rows: Sequence[Row]) -> str:
    """One line for each row."""
    lines = []
    for row in rows:
        steps = ["never" if s is None else f"{s[0]:.0f} ± {s[1]:.0f}" for s in row["steps"].values()]
        name = row["part"] + (f" {row['w_0']:g}" if row["w_0"] else "")
        end, low, high = (f"{value:.2g}" if value > 1e-100 else "<1e-100" for value in row["end"])
        off = "" if row["formula off by"] is None else f"{100 * row['formula off by']:.2g} %"
        spread = end if low == high else f"{end} ({low} to {high})"
        right = f"{100 * sum(row['accuracy']) / len(SEEDS):.1f} %" if "accuracy" in row else ""
        lines.append([name, row["method"], f"{row['strength']:g}", *steps, spread, off, right])
    levels = [f"to {level:g}" for level in LEVELS]
    return table(lines, ["", "optimiser", "λ", *levels, "ratio at end", "formula off by", "accuracy"])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Ratios over steps: measured solid, formula dashed; stronger penalties are darker."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    colours = {ADAM: "tab:blue", ADAMW: "tab:orange", SLOW_SGD: "tab:green", SGD: "tab:olive"}
    figure, both = pyplot.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    titles = {"MNIST": "nodes of a network on MNIST, made idle", "weight": "one weight without gradient"}
    for axes, (part, title) in zip(both, titles.items(), strict=True):
        for row in rows:
            if row["part"] != part or row["method"] not in colours or row["strength"] not in STRENGTHS:
                continue
            if row["w_0"] not in (None, 0.05):
                continue
            look = {"color": colours[row["method"]], "alpha": 0.45 + 0.25 * STRENGTHS.index(row["strength"])}
            steps = [row["every"] * k for k in range(POINTS + 1)]
            axes.plot(steps, row["measured"], lw=2, **look)
            axes.plot(steps, row["formula"], "--", lw=1.2, color="black", alpha=0.7)
            if row["method"] == ADAM:
                place = min(range(POINTS + 1), key=lambda k, r=row: abs(math.log(r["measured"][k] / 1e-9)))
                axes.annotate(
                    f"λ = {row['strength']:g}", (steps[place], 1e-9), xytext=(-4, 0), textcoords="offset points",
                    rotation=90, ha="right", va="center", fontsize=8, color="tab:blue",
                )  # fmt: skip
        axes.set(yscale="log", ylim=(FLOOR, 3), xlim=(0, None), xlabel="steps without gradient", title=title)
        axes.grid(alpha=0.3)
    both[0].set_ylabel("‖w‖ / ‖w‖ at the start")
    lines = [Line2D([], [], color=colour, lw=2, label=name) for name, colour in colours.items()]
    lines.append(Line2D([], [], color="black", ls="--", lw=1.2, label="formula"))
    both[0].legend(handles=lines, fontsize=8, loc="lower left", title="λ = 1e-05, 1e-04, 5e-04", title_fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Both parts, all optimisers."""
    arguments = parser(__doc__, "300 steps, one strength")
    arguments.add_argument("--plot", type=Path, help="picture of the curves")
    options = arguments.parse_args()
    if not models.has_data():
        return
    torch.set_num_threads(1)
    # Numbers below 1e-308 would slow all down, and mean nothing here.
    torch.set_flush_denormal(True)
    target = Target.of(options.device)
    images, labels = models.mnist("train", 2000 if options.quick else None)
    test_images, test_labels = models.mnist("test", 200 if options.quick else None)
    data = [t.to(target.device) for t in (images.flatten(1), labels, test_images.flatten(1), test_labels)]
    warm_up, steps, few = (20, 300, 1) if options.quick else (WARM_UP, STEPS, None)
    rows = []
    cases = [(method, strength, 0.05) for method in METHODS for strength in strengths(method)[-1 if few else None :]]
    for method, strength, size in cases + ([] if few else [(ADAM, strength, 2.0) for strength in STRENGTHS]):
        rows.append(of_one_weight(method, strength, size, steps))
    for method, strength, _ in cases:
        if method != PLAIN:
            rows.append(on_mnist(method, strength, data, warm_up, steps, target))
            print(f"{method}, {strength:g}: {rows[-1]['seconds']} s", flush=True)
    print(show(rows))
    if options.plot:
        plot(rows, options.plot)
    if not options.quick or options.json:
        write("adam_decay", rows, options.json, target)


if __name__ == "__main__":
    main()
