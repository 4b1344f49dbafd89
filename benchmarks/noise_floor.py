"""What a noise floor keeps from chance: shares of a payout with it and without, where it is known which examples matter.

    python benchmarks/noise_floor.py

Scores of 400 examples for six queries: normal draws, but for six examples of about ten times their spread.
"""

import torch

from whence.records import ScoreTable
from whence.settings import SharesConfig
from whence.shares import shares

QUERIES, EXAMPLES, PLANTED = 6, 400, (14.0, 12.0, 10.0, 11.0, 9.0, 13.0)


def main() -> None:
    """Print the table."""
    scores_QN = torch.randn(QUERIES, EXAMPLES, generator=torch.Generator().manual_seed(0))
    scores_QN[:, : len(PLANTED)] = torch.tensor(PLANTED)
    ids = [f"d{number}" for number in range(EXAMPLES)]
    table = ScoreTable(scores_QN, [f"q{number}" for number in range(QUERIES)], ids, "nats", "given")
    sources = {name: "planted" if number < len(PLANTED) else "chance" for number, name in enumerate(ids)}
    print("| floor | paid to the six | paid to the 394 others | paid to nobody |\n|---|---|---|---|")
    for floor in ("off", None):
        lines = shares(table, sources, config=SharesConfig(floor=floor)).lines
        share = {line.name: line.share for line in lines}
        nobody = 1 - share["planted"] - share["chance"]
        print(f"| {floor or 'default'} | {share['planted']:.1%} | {share['chance']:.1%} | {nobody:.1%} |")


if __name__ == "__main__":
    main()
