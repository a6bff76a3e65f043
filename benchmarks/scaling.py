"""Cost of an edit by stage for models of 8B to 405B parameters on 1 to 64 GPUs, from formulas; nothing is run.

`python -m benchmarks.scaling` prints the tables of docs/scaling.md. Every figure is arithmetic on the shapes below and
on the assumptions beside them; rates of real machines are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
DEVICES = (1, 8, 64)
ROWS, TOKENS_AFTER, TOKENS_BEFORE, STEPS = 7, 6, 12, 15
"""Of an edit: rows (six contexts and the essence), tokens of a row from the slot on and before it, and its steps."""
BATCH, EDITED = 100, 5
"""Edits of a batch; edited layers."""
PROMPTS, PROMPT_TOKENS = 13, 14
"""Of a CounterFact record: continuations that are scored, and their tokens."""


@dataclass(frozen=True)
class Shape:
    """A Llama-like network."""

    name: str
    layers: int
    hidden: int
    d_key: int
    vocabulary: int
    target: int
    """Where the last edited layer is."""
    key_value: int
    """Width of keys and values of attention together."""

    @property
    def block(self) -> int:
        """Parameters of a block."""
        return self.hidden * (2 * self.hidden + self.key_value + 3 * self.d_key)

    @property
    def parameters(self) -> int:
        """All parameters, embeddings and head included."""
        return self.layers * self.block + 2 * self.vocabulary * self.hidden


SHAPES = (
    Shape("8B", 32, 4096, 14336, 128256, 8, 2048),
    Shape("70B", 80, 8192, 28672, 128256, 20, 2048),
    Shape("405B", 126, 16384, 53248, 128256, 31, 2048),
)


def stage_one(shape: Shape) -> float:
    """FLOP of an edit: 2 per parameter and token forward, and as many backward to the slot, above the target layer."""
    above = (shape.layers - shape.target) * shape.block
    once = 2 * ROWS * ((TOKENS_BEFORE + TOKENS_AFTER) * (shape.target + 1) * shape.block + TOKENS_BEFORE * above)
    per_step = ROWS * (TOKENS_AFTER * 2 * above + 2 * shape.vocabulary * shape.hidden) * 2
    return once + STEPS * per_step


def keys(shape: Shape) -> float:
    """FLOP of an edit for reading its keys: the blocks up to the target, once, and on to the target for each layer."""
    return 2 * ROWS * TOKENS_BEFORE * (shape.target + EDITED) * shape.block


def solve(shape: Shape) -> float:
    """FLOP of an edit for its share of the solves: P K, the downdate of P, and the update of each edited layer."""
    return EDITED * (4 * shape.d_key**2 + 2 * shape.d_key * shape.hidden)


def evaluation(shape: Shape) -> float:
    """FLOP of an edit that is scored once."""
    return 2 * PROMPTS * (PROMPT_TOKENS * shape.layers * shape.block + shape.vocabulary * shape.hidden)


def wire(shape: Shape) -> dict[str, float]:
    """Bytes that every process receives, by what for: with the model on every device, a batch; when sharded, a pass."""
    return {
        "targets, keys and outputs": BATCH * 4 * (shape.hidden + EDITED * (2 * shape.d_key + shape.hidden)),
        "updates": EDITED * 4 * shape.hidden * shape.d_key,
        "a pass of a sharded model": 2 * shape.layers * shape.block,
    }


def device_memory(shape: Shape, devices: int, is_sharded: bool) -> float:
    """Bytes on a device: weights in bfloat16, bases and changes of the edited matrices, P in float64."""
    outside = 2 * 2 * shape.vocabulary * shape.hidden
    blocks = 2 * shape.layers * shape.block
    whole = outside + (blocks / devices + 2 * 2 * shape.block if is_sharded else blocks)
    edited = EDITED * ((2 + 4) * shape.hidden * shape.d_key + 8 * shape.d_key**2)
    return whole + edited


def main() -> None:
    """Print the tables."""
    print("TFLOP per edit, on one device or by all together\n")
    print("| model | stage one | keys | solve | evaluation |\n|---|---|---|---|---|")
    for shape in SHAPES:
        parts = (stage_one(shape), keys(shape), solve(shape), evaluation(shape))
        print(f"| {shape.name} | " + " | ".join(f"{part / 1e12:.3g}" for part in parts) + " |")
    print("\nTFLOP per edit and device, solve not divided\n")
    print("| model | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in DEVICES) + " |\n|---|" + "---|" * len(DEVICES))
    for shape in SHAPES:
        divided = stage_one(shape) + keys(shape) + evaluation(shape)
        cells = [f"{(divided * -(-BATCH // n) / BATCH + solve(shape)) / 1e12:.3g}" for n in DEVICES]
        print(f"| {shape.name} | " + " | ".join(cells) + " |")
    print(f"\nMiB received by every process, batches of {BATCH}\n")
    print("| model | " + " | ".join(wire(SHAPES[0])) + " |\n|---|---|---|---|")
    for shape in SHAPES:
        print(f"| {shape.name} | " + " | ".join(f"{part / 2**20:,.0f}" for part in wire(shape).values()) + " |")
    print("\nGiB on a device\n")
    print(
        "| model | replicated | sharded over 8 | sharded over 64 | of it P and edited matrices |\n|---|---|---|---|---|"
    )
    for shape in SHAPES:
        edited = EDITED * (6 * shape.hidden * shape.d_key + 8 * shape.d_key**2)
        cells = [device_memory(shape, 1, False), *(device_memory(shape, n, True) for n in (8, 64)), edited]
        print(f"| {shape.name} | " + " | ".join(f"{cell / GIB:,.0f}" for cell in cells) + " |")
    print("\nOf a million edits\n")
    print("| model | host memory of keys and targets, GiB | one checkpoint, GiB | ledger, GiB |\n|---|---|---|---|")
    for shape in SHAPES:
        kept = EDITED * 1e6 * (4 * (shape.d_key + shape.hidden) + 9)
        saved = kept + EDITED * (4 * shape.hidden * shape.d_key + 8 * shape.d_key**2)
        print(f"| {shape.name} | {kept / GIB:,.0f} | {saved / GIB:,.0f} | {542e6 / GIB:.1f} |")


if __name__ == "__main__":
    main()
