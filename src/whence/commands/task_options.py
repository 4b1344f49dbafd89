"""How verbs read a model and its data: the options of its task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.commands.diffusion_options import Drawn, DrawnOptions, Measuring, MeasuringOptions, given_of
from whence.errors import BadInput
from whence.settings import Placement

__all__ = ["Reading", "TaskOptions"]

Task = Literal[
    "causal_lm", "classification", "masked_lm", "regression", "seq2seq", "token_classification", "preference", "reward", "reward_weighted",
    "diffusion",
]  # fmt: skip
"""What a model does, as `whence.load.TASKS` has it, which takes torch to import."""


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """How a model and its data are read.

    Args:
        task: What the model does.
        split: Split of a Hugging Face dataset.
        long: What to do with texts longer than the context; a classifier's are not split.
        max_length: Tokens per example at most.
        track: Patterns of parameter names to attribute; all trainable ones if left out.
        ignore: Patterns of parameter names to leave out.
        functional: Attribute parameters of unknown layers through torch.func.
        skip_bad: Leave records out that cannot be used, and name them in every answer, instead of refusing the data.
        labelling: Of a classifier: whether a record has one class, several of them, or a probability for each (soft).
        reference: Of preferences: the frozen model that the policy was held against, where records do not bring its log-probabilities.
        beta: Of preferences: that of DPO.
        drawn: Of diffusion models: what training drew.
        measuring: Of diffusion models: what a query asks about.
    """

    task: Task = "causal_lm"
    split: str = "train"
    long: Literal["error", "split", "truncate"] = "error"
    max_length: int | None = None
    track: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    functional: bool = False
    skip_bad: bool = False
    labelling: Literal["single", "multi", "soft"] = "single"
    reference: str | None = None
    beta: float | None = None
    drawn: Drawn = DrawnOptions()
    measuring: Measuring = MeasuringOptions()

    def load(
        self,
        model: str,
        placement: Placement = Placement(),
        ranks: Any = None,
    ) -> tuple[Any, dict[str, Any]]:
        """The task of a model, and where it is from.

        Args:
            model: Hugging Face folder or hub name, or file.py:function that returns a task.
            placement: Where its weights go, and in which type.
            ranks: Connected processes that it is split over, if the placement says so.

        Returns:
            As `whence.load.load_task`.

        Raises:
            BadInput: If an option is given that has no use for the model: a function makes the task itself, and a classifier's text has one
                label, however long it is.
        """
        from whence.distributed import Ranks
        from whence.load import load_task

        return load_task(model, kind=self.task, placement=placement, ranks=ranks or Ranks(), **self._settings(model))

    def _reference(self) -> str:
        """The reference as a store records it: where it is, if it is on this machine."""
        path = Path(str(self.reference))
        return str(path.resolve()) if path.is_dir() else str(path)

    def _settings(self, model: str) -> dict[str, Any]:
        chosen = {
            "--long": self.long != "error", "--max-length": self.max_length is not None, "--track": self.track,
            "--ignore": self.ignore, "--functional": self.functional, "--skip-bad": self.skip_bad,
            "--labelling": self.labelling != "single", "--reference": self.reference, "--beta": self.beta is not None,
        }  # fmt: skip
        of_diffusion = given_of(self.drawn, self.measuring)
        chosen |= {f"--{name.replace('_', '-')}": True for name in of_diffusion}
        given = [name for name, value in chosen.items() if value]
        if ".py:" in model:
            if given:
                raise BadInput(
                    found=f"{', '.join(given)} for {model}",
                    needed="these set in the function, which makes the task itself",
                    do="pass them to the task there",
                )
            return {}
        if self.max_length is not None and self.max_length < 1:
            raise BadInput(found=f"--max-length {self.max_length}", needed="1 or more tokens", do="correct it, or leave it out")
        if self.task not in ("causal_lm", "masked_lm") and self.long == "split":
            raise BadInput(
                found=f"--long split for --task {self.task}",
                needed="a language model for it, since a label belongs to a whole text",
                do="pass --long truncate, or leave it out",
            )
        homes = {"--labelling": "classification", "--reference": "preference", "--beta": "preference"}
        homes |= {f"--{name.replace('_', '-')}": "diffusion" for name in of_diffusion}
        for flag, of in homes.items():
            if flag in given and self.task != of:
                raise BadInput(
                    found=f"{flag} for --task {self.task}",
                    needed=f"--task {of}, which it is of",
                    do="leave it out, or correct --task",
                )
        if self.task == "diffusion":
            if self.max_length is not None or self.long != "error":
                raise BadInput(found="--max-length or --long for --task diffusion", needed="a task of texts", do="leave it out")
            settings: dict[str, Any] = {"diffusion": of_diffusion}
        else:
            settings = {"long": self.long, "max_length": self.max_length}
        settings |= {} if self.labelling == "single" else {"labelling": self.labelling}
        settings |= {} if self.beta is None else {"beta": self.beta}
        settings |= {} if self.reference is None else {"reference": self._reference()}
        return settings | {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in (
                ("track", self.track),
                ("ignore", self.ignore),
                ("functional", self.functional),
                ("skip_bad", self.skip_bad),
            )  # fmt: skip
            if value
        }


Reading = Annotated[TaskOptions, Parameter(name="*")]
"""The options as options of a verb."""
