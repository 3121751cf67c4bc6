"""Problems like the step of a transformer: lives nested as a stack, with short ones between."""

from __future__ import annotations

import random

from planner.layout import Buffer, Problem


class Clock:
    """Moments of allocations and frees, and the buffers that come of them."""

    def __init__(self) -> None:
        self.now = 0
        self.buffers: list[Buffer] = []
        self._open: dict[str, tuple[int, int]] = {}

    def allocate(self, name: str, size_bytes: int) -> None:
        self._open[name] = self.now, size_bytes
        self.now += 1

    def free(self, *names: str) -> None:
        for name in names:
            lower, size_bytes = self._open.pop(name)
            self.buffers.append(Buffer(name, lower, self.now, size_bytes))
        self.now += 1


def transformer_step(
    layers: int, *, hidden: int = 4096, ffn: int = 14336, kv: int = 1024, tiles: int = 2, seed: int
) -> Problem:
    """Forward and backward over `layers`: x and o are kept from forward to backward, everything
    else is made and dropped tile by tile. Sizes vary by a few per cent, as those of no real model.
    """
    vary = random.Random(seed)

    def size(width: int) -> int:
        return 2 * 4099 * width + 512 * vary.randrange(1 + width // 8)

    clock = Clock()
    for layer in range(layers):
        clock.allocate(f"x{layer}", size(hidden))
        clock.allocate(f"q{layer}", size(hidden))
        clock.allocate(f"kv{layer}", size(2 * kv))
        clock.allocate(f"o{layer}", size(hidden))
        clock.free(f"q{layer}", f"kv{layer}")
        _mlp(clock, f"f{layer}", tiles, hidden, ffn, size)
    clock.allocate("logits", size(2 * hidden))
    clock.allocate("d", size(hidden))
    clock.free("logits")
    for layer in reversed(range(layers)):
        _mlp(clock, f"b{layer}", tiles, hidden, ffn, size)
        clock.allocate(f"dq{layer}", size(hidden + 2 * kv))
        clock.free(f"o{layer}")
        clock.allocate(f"dx{layer}", size(hidden))
        clock.free(f"dq{layer}", f"x{layer}", f"dx{layer}")
    clock.free("d")
    return Problem(tuple(clock.buffers))


def _mlp(clock: Clock, name: str, tiles: int, hidden: int, ffn: int, size: object) -> None:
    assert callable(size)
    for tile in range(tiles):
        parts = {"n": hidden, "g": ffn, "u": ffn, "a": ffn, "y": hidden}
        for part, width in parts.items():
            clock.allocate(f"{name}.{tile}.{part}", size(width) // tiles)
            if part == "a":
                clock.free(f"{name}.{tile}.g", f"{name}.{tile}.u")
        clock.free(*(f"{name}.{tile}.{part}" for part in ("y", "a", "n")))
