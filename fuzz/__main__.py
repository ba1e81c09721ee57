"""`python -m fuzz [target ...] --inputs N`: random changes of known inputs, for a given seed.

Prints one JSON object for each target: inputs, how many of them found a line that none had reached before (they go
into the corpus with `--keep`), the longest that one took, and by how much the memory has grown. An input that breaks a
target is written beside the corpus, and is an error. With atheris installed, `--atheris TARGET` lets that do it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from fuzz.targets import SPLIT, TARGETS, seeds

CORPUS = Path(__file__).parents[1] / "tests" / "fuzz" / "corpus"
HANGS_S = 20
LONGEST = 4096
LOOK_EVERY = 25  # inputs, of which one is run while the lines that it reaches are looked at
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xDC, 0xDD, 0xDF, 0xC0, 0xCF, 0xD3, 0x90, 0x81, 0xFE)


def mutated(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """`data` with one to six changes: bits, bytes, numbers, pieces removed, doubled, or taken from `other`."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at, way = chance.randrange(len(out) + 1), chance.randrange(8)
        if way == 0 and out:
            out[at % len(out)] ^= 1 << chance.randrange(8)
        elif way == 1 and out:
            out[at % len(out)] = chance.choice(NUMBERS)
        elif way == 2:
            out[at:at] = chance.randbytes(chance.randint(1, 9))
        elif way == 3:
            del out[at : at + chance.randint(1, 12)]
        elif way == 4:
            out[at:at] = out[at : at + chance.randint(1, 24)]
        elif way == 5:
            start = chance.randrange(len(other) + 1)
            out[at:at] = other[start : start + chance.randint(1, 40)]
        elif way == 6:
            out[at : at + 8] = chance.choice((2**63 - 1, 2**64 - 1, 2**32, 0)).to_bytes(
                8, chance.choice(("big", "little"))
            )
        else:
            out += SPLIT + other
    return bytes(out[:LONGEST])


def lines_of(run: Callable[[], None]) -> set[tuple[str, int]]:
    """The lines of this package that `run` reaches."""
    found: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        if "lightning_async" not in frame.f_code.co_filename:
            return None
        found.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return found


def fuzz(name: str, inputs: int, seed: int, keep: bool = False, hangs_s: int = 0) -> dict[str, object]:
    """Run `inputs` of them. Raises what a target raises, after writing its input beside the corpus.

    An input that takes longer than `hangs_s` gets a SIGALRM; 0: never.
    """
    target, chance = TARGETS[name], random.Random(f"{name} {seed}")
    corpus = [*seeds(name), *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]
    reached: set[tuple[str, int]] = set()
    for known in corpus:
        reached |= lines_of(lambda known=known: target(known))  # type: ignore[misc]
    before, began, longest, found = _resident_kib(), time.monotonic(), 0.0, 0
    for number in range(inputs):
        data = mutated(chance.choice(corpus), chance.choice(corpus), chance)
        if hangs_s:
            signal.alarm(hangs_s)
        started = time.perf_counter()
        try:
            if number % LOOK_EVERY == 0:
                new = lines_of(lambda: target(data)) - reached  # noqa: B023
                if new:
                    reached |= new
                    corpus.append(data)
                    found += 1
                    _ = keep and _keep(CORPUS / name, data)
            else:
                target(data)
        except BaseException:
            print(f"{name} broke on {_keep(CORPUS / 'broken', data)}", file=sys.stderr)
            raise
        finally:
            if hangs_s:
                signal.alarm(0)
        if number % LOOK_EVERY:
            longest = max(longest, time.perf_counter() - started)
    return {
        "target": name, "inputs": inputs, "seed": seed, "seconds": round(time.monotonic() - began, 1), "kept": found,
        "lines": len(reached), "longest_s": round(longest, 4), "grown_mib": (_resident_kib() - before) // 1024,
    }  # fmt: skip


def _keep(folder: Path, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return path


def _resident_kib() -> int:
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmRSS:")[1].split()[0]) if status.exists() else 0


def with_atheris(name: str, arguments: Sequence[str]) -> None:
    """Hand the target to atheris, which does not come back. Raises ImportError where it is not installed.

    `arguments` are libFuzzer's, such as -runs=1000000. It looks at the lines of this package alone, which is imported
    once more for that.
    """
    import atheris  # type: ignore[import-not-found]

    for module in [module for module in sys.modules if module.startswith(("lightning_async", "fuzz.targets"))]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["lightning_async"]):
        fresh = importlib.import_module("fuzz.targets")
    atheris.Setup([sys.argv[0], *arguments, str(CORPUS / name)], fresh.TARGETS[name])
    atheris.Fuzz()


def _hangs(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"one input took more than {HANGS_S} s")


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="Default: all.")
    parser.add_argument("--inputs", type=int, default=10_000, help="of each target. Default: 10000.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="put inputs that reached something new into the corpus")
    parser.add_argument("--atheris", choices=list(TARGETS), metavar="TARGET", help="let atheris do it")
    args, rest = parser.parse_known_args(words)
    if args.atheris:
        with_atheris(args.atheris, rest)
    signal.signal(signal.SIGALRM, _hangs)
    for name in args.targets or TARGETS:
        print(json.dumps(fuzz(name, args.inputs, args.seed, args.keep, HANGS_S)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
