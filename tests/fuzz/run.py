"""make fuzz: random models, data and questions for some minutes. Prints what was tried, and findings with what reproduces them.

A draw has a number: the draw k of a run with the seed s is s * 1,000,000 + k. Every fifth stretch is drawn by Hypothesis instead, which
likes corners better; such a draw is reproduced from its JSON. Each worker is a process of its own, so that a crash of PyTorch or a draw
that does not end is a finding and not the end.
"""

import argparse
import collections
import dataclasses
import itertools
import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz.case import Case, draw
from tests.fuzz.verdict import OUTCOMES, Verdict, judge, shrunk, signature

__all__ = ["main"]

_DRAWS_OF_A_SEED = 1_000_000
_STRETCH = 25
_HANGING_SECONDS = 120
_SHOWN = 3


@dataclass
class _Tally:
    """What was tried so far.

    Args:
        outcomes: Draws by kind of input and outcome.
        parts: Draws by part, stem, family, method, loss and so on.
        refusals: By signature of a message, what became of the draws that it was said to.
        findings: By sort, texts that say what was found and how to see it again.
    """

    outcomes: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    parts: collections.Counter[str] = field(default_factory=collections.Counter)
    refusals: dict[str, collections.Counter[str]] = field(default_factory=lambda: collections.defaultdict(collections.Counter))
    findings: dict[str, list[str]] = field(default_factory=lambda: collections.defaultdict(list))

    def add(self, case: Case, verdict: Verdict, how: str) -> None:
        """One draw; `how` says how to see it again."""
        self.outcomes[case.kind, verdict.outcome] += 1
        values = dataclasses.asdict(case)
        self.parts.update({f"part {name}" for name in case.parts})
        self.parts.update(
            f"{name} {values[name]}" for name in ("stem", "method", "task", "dtype", "functional", "batch", "count")
        )
        self.parts[f"loss {case.loss}"] += case.task == "custom"
        for message in verdict.refusals:
            self.refusals[message][verdict.outcome] += 1
        if verdict.outcome == "finding":
            self.findings[signature(verdict.detail)].append(f"{how}\n    {verdict.detail}\n{verdict.trace}")

    @property
    def count(self) -> int:
        """Draws tried."""
        return sum(self.outcomes.values())


def main(words: list[str] | None = None) -> int:
    """The command; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="which draws")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument("--case", type=int, action="append", default=[], help="try one draw again, by its number")
    parser.add_argument("--replay", action="append", default=[], help="try one draw again, by its JSON")
    chosen = parser.parse_args(words)
    cases = [*(draw(number) for number in chosen.case), *(Case.from_text(text) for text in chosen.replay)]
    tally = _Tally()
    if cases:
        for case in cases:
            verdict = judge(case)
            tally.add(case, verdict, f"--replay '{case}'")
            print(f"{verdict.outcome}: {case}\n{verdict.detail}")
            print("\n".join(f"    refused: {message}" for message in verdict.refusals))
            print(verdict.trace)
    else:
        _run(tally, chosen.seconds, chosen.seed, chosen.jobs)
        _report(tally, chosen.seconds)
    return 1 if tally.findings else 0


def _run(tally: _Tally, seconds: float, seed: int, jobs: int) -> None:
    context = multiprocessing.get_context("spawn")
    end = time.monotonic() + seconds
    workers = [_Worker(context, seed, place, jobs) for place in range(jobs)]
    told = time.monotonic()
    try:
        while time.monotonic() < end:
            for worker in workers:
                worker.read(tally)
            if time.monotonic() - told > 30:
                told = time.monotonic()
                found = sum(map(len, tally.findings.values()))
                print(f"{tally.count:,} draws, {found:,} findings of {len(tally.findings)} sorts", file=sys.stderr, flush=True)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that tries one draw after the other, and another one when it is lost."""

    def __init__(self, context: Any, seed: int, place: int, jobs: int):
        self.context, self.seed, self.step = context, seed, jobs
        self.at = place
        self._start()

    def read(self, tally: _Tally) -> None:
        """Take what it has to say, for half a second at most."""
        try:
            if self.connection.poll(0.5):
                kind, *rest = self.connection.recv()
                self.since = time.monotonic()
                if kind == "trying":
                    self.trying, self.at = rest
                else:
                    self.trying = None
                    tally.add(*rest)
            elif self.trying is not None and time.monotonic() - self.since > _HANGING_SECONDS:
                self._lost(tally, f"no end within {_HANGING_SECONDS} seconds")
        except (EOFError, ConnectionResetError):
            self.process.join()
            self._lost(tally, f"the process ended with the status {self.process.exitcode}")

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()

    def _lost(self, tally: _Tally, why: str) -> None:
        self.stop()
        if self.trying is not None:
            tally.add(self.trying, Verdict("finding", why), f"--replay '{self.trying}'")
        self.at += self.step
        self._start()

    def _start(self) -> None:
        self.connection, inner = self.context.Pipe()
        self.process = self.context.Process(target=_work, args=(inner, self.seed, self.at, self.step), daemon=True)
        self.process.start()
        inner.close()
        self.trying, self.since = None, time.monotonic()


def _work(connection: Any, seed: int, start: int, step: int) -> None:
    """Try draws for ever. Stretches of numbers, and every fifth one of Hypothesis's."""
    import torch

    torch.set_num_threads(1)
    seen: set[str] = set()
    for place in itertools.count(start, step):
        number = seed * _DRAWS_OF_A_SEED + place
        if (place // step) % (5 * _STRETCH) == 4 * _STRETCH:
            for case in _of_hypothesis(number):
                _try(connection, case, f"--replay '{case}'", place, seen)
        if (place // step) % (5 * _STRETCH) < 4 * _STRETCH:
            _try(connection, draw(number), f"--case {number}", place, seen)


def _try(connection: Any, case: Case, how: str, place: int, seen: set[str]) -> None:
    connection.send(("trying", case, place))
    try:
        verdict = judge(case)
    except Exception as error:
        verdict = Verdict("finding", f"the trial itself failed: {type(error).__name__}: {error}")
    connection.send(("tried", case, verdict, how))
    sort = signature(verdict.detail)
    if verdict.outcome == "finding" and sort not in seen:
        seen.add(sort)
        connection.send(("trying", case, place))
        small = shrunk(case, verdict)
        if small != case:
            connection.send(("tried", small, judge(small), f"--replay '{small}'  (smaller than {how})"))


def _of_hypothesis(number: int) -> Iterator[Case]:
    """A stretch of draws whose every choice is Hypothesis's."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    drawn: list[Case] = []

    @seed(number)
    @settings(
        max_examples=_STRETCH, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.integers(0, 1 << 30), st.randoms(use_true_random=False))
    def collect(weights, source):
        drawn.append(draw(weights, source))

    collect()
    return iter(drawn)


def _report(tally: _Tally, seconds: float) -> None:
    print(f"\n{tally.count:,} draws in {seconds:,.0f} seconds ({tally.count / 1000:.1f} thousand)\n")
    kinds = sorted({kind for kind, _ in tally.outcomes})
    width = max(len(kind) for kind in [*kinds, "kind"])
    print(f"{'kind':{width}}  " + "  ".join(f"{name:>16}" for name in OUTCOMES))
    for kind in [*kinds, "all"]:
        counts = [
            tally.outcomes[kind, name] if kind != "all" else sum(tally.outcomes[k, name] for k in kinds) for name in OUTCOMES
        ]
        print(f"{kind:{width}}  " + "  ".join(f"{count:16,}" for count in counts))
    print("\n" + "\n".join(f"{name}: {meaning}" for name, meaning in OUTCOMES.items()))
    print("\ndraws by what they have:")
    print(", ".join(f"{name} {count:,}" for name, count in sorted(tally.parts.items()) if count))
    print("\nrefusals by message, and what became of the draws:")
    for message, counts in sorted(tally.refusals.items(), key=lambda item: -item[1].total()):
        print(
            f"{counts.total():6,}  {', '.join(f'{name} {count:,}' for name, count in counts.most_common())}\n        {message}"
        )
    print(f"\nfindings: {sum(map(len, tally.findings.values())):,} of {len(tally.findings)} sorts")
    for sort, texts in sorted(tally.findings.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(texts):,} x {sort}")
        for text in sorted(texts, key=len)[:_SHOWN]:
            print(f"  {text}")


if __name__ == "__main__":
    sys.exit(main())
