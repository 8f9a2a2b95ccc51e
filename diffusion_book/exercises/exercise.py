"""What an exercise is, and how an answer is judged: beside the right one and those that the usual mistakes give."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SEED = 0
TOLERANCE = 1e-4  # float32 passes, and no mistake that is worth a name


def as_given(answer, arguments):
    """The answer itself is all that counts."""
    return answer


@dataclass(frozen=True)
class Exercise:
    """A function that the reader writes.

    Attributes:
        right: the library's answer. The reader's function has its name and its arguments.
        questions: generator -> the arguments that the function is called with, under a name for each call.
        proved: one line for those who are right: what has been shown.
        mistakes: one line for each typical mistake -> a function that makes it.
        measure: (answer, arguments) -> what is compared, a tensor or several; for answers that count for more than
            their numbers, such as their gradients.
    """

    right: Callable
    questions: Callable[[torch.Generator], dict[str, tuple]]
    proved: str
    mistakes: dict[str, Callable]
    measure: Callable = as_given

    @property
    def name(self) -> str:
        """Of the function."""
        return self.right.__name__

    def ask(self) -> dict[str, tuple]:
        """The questions, the same each time and each time in tensors of their own."""
        return self.questions(torch.Generator().manual_seed(SEED))

    def results(self, function: Callable) -> list[tuple[Tensor, ...]]:
        """What is compared of a function's answers to all questions."""
        return [measured(self, function(*arguments), arguments) for arguments in self.ask().values()]


def judge(exercise: Exercise, attempt: Callable) -> tuple[bool, str]:
    """Whether an attempt is right, and one line that says what it has proved or what is wrong with it."""
    cases, untouched = exercise.ask(), exercise.ask()
    answers = []
    for name, arguments in cases.items():
        wanted = exercise.right(*untouched[name])
        try:
            answer = attempt(*arguments)
        except Exception as error:  # whatever the reader's code may raise
            return False, stopped(error, attempt)
        if complaint := wrong_form(answer, wanted) or changed_argument(exercise, arguments, untouched[name]):
            return False, complaint
        answers.append(measured(exercise, answer, arguments))
    expected = exercise.results(exercise.right)
    if same(answers, expected):
        return True, exercise.proved
    for message, mistake in exercise.mistakes.items():
        if same(answers, exercise.results(mistake)):
            return False, message
    return False, difference(list(cases), answers, expected)


def measured(exercise: Exercise, answer, arguments: tuple) -> tuple[Tensor, ...]:
    """What is compared of one answer, float64. Numbers that are not finite are all alike."""
    parts = exercise.measure(answer, arguments)
    parts = parts if isinstance(parts, tuple | list) else (parts,)
    parts = (torch.as_tensor(part).detach().cpu().double() for part in parts)
    return tuple(part.masked_fill(part.isinf(), torch.nan) for part in parts)


def same(answers: list[tuple[Tensor, ...]], expected: list[tuple[Tensor, ...]]) -> bool:
    """Whether all answers agree, shapes included."""
    return all(
        close(one, other) for pair in zip(answers, expected, strict=True) for one, other in zip(*pair, strict=True)
    )


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape and the same numbers."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def stopped(error: Exception, attempt: Callable) -> str:
    """An exception in one line, with the line of the reader's code where it came up."""
    message = " ".join(str(error).split())
    own = getattr(getattr(inspect.unwrap(attempt), "__code__", None), "co_filename", None)
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own and frame.line]
    where = f" at `{lines[-1]}`" if lines else ""
    return f"it stops{where} with {type(error).__name__}: {message:.120}"


def wrong_form(answer, wanted) -> str | None:
    """What is wrong with the kind of thing that was returned, if anything."""
    if answer is None:
        return "it returns None. Put your code in the place of the dots, and return what you found."
    number = isinstance(answer, int | float)
    if isinstance(wanted, tuple):
        names = getattr(wanted, "_fields", None)
        expected = f"{len(wanted)} tensors" + (f", {' and '.join(names)}" if names else "")
        fits = isinstance(answer, tuple | list) and len(answer) == len(wanted)
        fits = fits and all(isinstance(part, Tensor | int | float) for part in answer)
    else:
        shape = getattr(wanted, "shape", ())
        expected = f"a tensor of shape {tuple(shape)}" if len(shape) else "a number"
        fits = isinstance(answer, Tensor) or (number and not len(shape))
    kind = f"{len(answer)} things" if isinstance(answer, tuple | list) else f"a {type(answer).__name__}"
    return None if fits else f"it returns {kind}, expected: {expected}"


def changed_argument(exercise: Exercise, arguments: tuple, untouched: tuple) -> str | None:
    """Which of its arguments the attempt has written into, if any."""
    for name, now, before in zip(inspect.signature(exercise.right).parameters, arguments, untouched, strict=False):
        if isinstance(now, Tensor) and not torch.equal(now, before):
            return f"it writes into its argument {name}: whoever calls it will miss the old numbers. Work on a copy."
    return None


def difference(names: list[str], answers: list[tuple[Tensor, ...]], expected: list[tuple[Tensor, ...]]) -> str:
    """How wrong answers differ, where none of the known mistakes explains them."""
    right = [name for name, one, other in zip(names, answers, expected, strict=True) if same([one], [other])]
    name, ones, others = next(pair for pair in zip(names, answers, expected, strict=True) if pair[0] not in right)
    place, one, other = next((i, *pair) for i, pair in enumerate(zip(ones, others, strict=True)) if not close(*pair))
    where = f" (asked: {name})" if len(names) > 1 else ""
    where += f", in number {place + 1} of the {len(ones)} that it returns" if len(ones) > 1 else ""
    if one.shape != other.shape:
        return f"it returns the shape {tuple(one.shape)}, expected: {tuple(other.shape)}{where}"
    if not one.isfinite().all():
        return f"right shape, but {(~one.isfinite()).sum()} of {one.numel()} numbers are not finite{where}"
    factors = (one / other)[other != 0]
    if len(factors) > 1 and close(factors, factors[:1].expand_as(factors)) and close(one, factors[0] * other):
        return f"right shape, but every number is {factors[0]:.3g} times what it should be{where}"
    but = f", and right for {', '.join(right)}" if right else ""
    return f"right shape, but numbers are off by up to {(one - other).abs().max():.2g}{where}{but}"
