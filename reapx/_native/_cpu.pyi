# The functions of every back end's module.
from collections.abc import Sequence

Array = tuple[int, str, tuple[int, ...]] | tuple[int, str, tuple[int, ...], tuple[int, ...]]
Where = tuple[int, str] | tuple[int, int]  # (threads, core) on the CPU, (device, stream) on a GPU
Consumer = tuple[Array, Array, Array, float, Array, Array]
PathTask = tuple[Sequence[Consumer], Array, Array, Array, Array]
CutsTask = tuple[Array, Array, Array, Array, Array, Array, Array]
SolveTask = tuple[Array, Array, Array, float, Array | None, Array]
PairConsumer = tuple[Array, Array, Array, float, Array]
PairTask = tuple[Sequence[PairConsumer], Array | None, Array, Array, Array]

reads_half: bool  # whether x and target of gram_accumulate may be float16 or bfloat16

def cores() -> list[str]: ...
def gram_accumulate(
    x: Array,
    window: Sequence[tuple[int, int]],
    groups: int,
    output_size: tuple[int, int],
    gram: Array,
    total: Array,
    target: Array | None,
    cross: Array | None,
    target_total: Array | None,
    target_square: Array | None,
    positions: Array | None,
    where: Where,
    form: str,
) -> None: ...
def gram_mirror(gram: Array, where: Where) -> None: ...
def basis_compute(
    grams: Sequence[Array],
    ridges: Sequence[float],
    bases: Sequence[Array],
    failed: Array,
    where: Where,
) -> None: ...
def path_eliminate(tasks: Sequence[PathTask], where: Where) -> None: ...
def path_weights(tasks: Sequence[CutsTask], where: Where) -> None: ...
def batch_solve(tasks: Sequence[SolveTask], failed: Array, where: Where) -> None: ...
def pair_scan(tasks: Sequence[PairTask], where: Where) -> None: ...
def zero_scan(
    weights: Sequence[Array],
    rows: Sequence[Array],
    columns: Sequence[Array],
    where: Where,
) -> None: ...
