"""The verb that chooses training data: what to keep of it."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.select_inputs import GroupOptions, ProofOptions, ValueOptions, check_amounts, check_options, records_of
from whence.commands.shared import Json
from whence.settings import SelectConfig
from whence.terminal import tell, tell_json

__all__ = ["select"]


def select(
    data: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    config: Annotated[SelectConfig, Parameter(name="*")] = SelectConfig(),
    valued: Annotated[ValueOptions, Parameter(name="*")] = ValueOptions(),
    grouped: Annotated[GroupOptions, Parameter(name="*")] = GroupOptions(),
    proof: Annotated[ProofOptions, Parameter(name="*")] = ProofOptions(),
    as_json: Json = False,
) -> None:
    """Keep, drop or re-weight training examples by what they are worth, and prove it by retraining.

    Writes kept.jsonl (the records that are kept, ready to train on), list.jsonl (a decision, a weight and a reason for every example) and
    summary.json; with --prove also proof.json and the finished runs, so that a command that was stopped goes on.

    Args:
        data: Training data, as in build.
        output: Folder for the lists.
        config: Which examples are kept.
        valued: Where values come from.
        grouped: Groups and near-duplicates among the examples.
        proof: Retraining on the choice.
        as_json: Print JSON.

    Raises:
        BadInput: If options are missing, or have nothing to act on.
    """
    from whence.load import load_records
    from whence.report import print_table
    from whence.select import select as choose
    from whence.select.budget import Budget

    check_options(config, valued, grouped, proof)
    config = replace(config, by=valued.ranked_by(config.by))
    check_options(config, valued, grouped, proof)  # now that it is known what the values of a table are
    for amount in (config.keep, config.drop):
        if amount is not None:
            Budget.read(amount)  # before anything is read: a wrong one is an error
    records = list(load_records(data, split=valued.reading.split))
    check_amounts(config, len(records))
    task = valued.task()
    train = valued.dataset(task, records)
    table = valued.values(task, train, config.by)
    facts = grouped.facts(task, records, train)
    chosen = choose(table, config=config, **facts)
    chosen.save(output, records=records_of(records, train))
    content: dict[str, Any] = {"folder": str(output), "train_on": _train_on(output), **chosen.summary()}
    proved = None
    if proof.is_asked:
        rivals = {}
        for name in proof.against:
            source, rule = replace(valued, table=None, validation=None, method=None), replace(config, by=name, prefer=None)
            rivals[name] = choose(source.values(task, train, name), config=rule, **facts)
        proved = proof.run(chosen, rivals, output, first_seed=valued.seed)
        content["proof"] = proved.to_dict()
    if as_json:
        tell_json(content)
        return
    groups, notes = content.pop("groups", {}), content.pop("notes")
    content |= {f"note {number}": note for number, note in enumerate(notes, start=1)}
    for name, value in content.items():
        if name != "proof":
            tell(f"{name.replace('_', ' '):>23}  {_shown(value)}")
    if groups:
        rows = [(name, group["examples"], group["kept"]) for name, group in groups.items()]
        print_table(("group", "examples", "kept"), rows)
    if proved is not None:
        title = f"mean loss after training on each, {len(proved.result.seeds)} seeds; less is better"
        print_table(proved.header, proved.cells(), title=title)


def _train_on(output: Path) -> str:
    """Where the chosen records are, or why they are not."""
    records = output / "kept.jsonl"
    return (
        str(records)
        if records.is_file()
        else "no kept.jsonl, since JSON does not hold these records, or their arrays are too large for it; list.jsonl has their ids"
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
