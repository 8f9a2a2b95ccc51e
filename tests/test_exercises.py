"""The exercises: the chapters' own solutions pass, and their stubs and the usual mistakes each hear what is wrong.

Stubs and solutions are taken from the chapters as they stand. A mistake is a solution with one piece replaced.
"""

import ast
import functools
import itertools
import math
import re
from pathlib import Path

import jupytext
import pytest
import torch

from diffusion_book import samplers
from diffusion_book.exercises import CHAPTERS, EXERCISES, check
from diffusion_book.exercises.exercise import Exercise, judge, same
from diffusion_book.schedules import cosine, rectified

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FILES = sorted(NOTEBOOKS.rglob("0[1-9]_*.py"), key=lambda path: path.name)
SOURCES = {path.stem[:2]: path for path in FILES}
EMPTY = "Not yet: it returns None. Put your code in the place of the dots, and return what you found."

# name -> (a piece of the chapter's solution, what stands in its place by mistake, a part of what the reader is told)
MISTAKES = {
    "noisy": [
        ("alpha_bar.sqrt() * x0", "alpha_bar * x0", "the square root of alpha-bar is missing"),
        ("(1 - alpha_bar).sqrt()", "(1 - alpha_bar)", "the square root of 1 - alpha-bar is missing"),
        ("cumprod(0)[k]", "cumprod(0)[k - 1]", "one step short"),
        ("(1 - beta).cumprod(0)[k]", "(1 - beta)[k]", "a single step"),
        (".reshape(-1, 1, 1, 1)", "", "each column has its own step"),
    ],
    "step_back": [
        ("x0.clamp(-1, 1)", "x0", "x0 is not clipped"),
        ("variance.sqrt() * z", "beta[k].sqrt() * z", "the variance is beta_k"),
        ("variance.sqrt() * z", "variance * z", "z is multiplied by the variance"),
        ("alpha_bar[k - 1]", "alpha_bar[k]", "alpha-bar_k stands where alpha-bar_{k-1} belongs"),
        (
            "return from_x_k * x_k + from_x_0 * x0.clamp(-1, 1) + variance.sqrt() * z",
            "return (from_x_k * x_k + from_x_0 * x0 + variance.sqrt() * z).clamp(-1, 1)",
            "x_{k-1} is clamped instead of x0",
        ),
    ],
    "ideal_x0": [
        ("weights.log() - ", "-", "the weights of the points do not count"),
        ("alpha * points", "points", "x_t is compared with the points themselves"),
        ("2 * sigma**2", "2 * sigma", "sigma is not squared"),
        ("softmax(dim=1)", "softmax(dim=0)", "the softmax runs over the noisy states"),
    ],
    "turned": [
        ("- delta.sin()", "+ delta.sin()", "it turns towards v"),
        ("phi_t - phi_s", "phi_s - phi_t", "it turns towards v"),
        ("phi_t - phi_s", "phi_t + phi_s", "the angles are added"),
        ("delta.cos() * x_t - delta.sin()", "delta.sin() * x_t - delta.cos()", "have changed places"),
        ("phi_t - phi_s", "phi_t", "that is the prediction of x_0"),
    ],
    "heun_walk": [
        ("(slope + denoiser(ahead, s).eps) / 2", "slope", "that is Euler's method"),
        ("(slope + denoiser(ahead, s).eps) / 2", "denoiser(ahead, s).eps", "the slope at the end alone"),
        ("(slope + denoiser(ahead, s).eps) / 2", "slope + denoiser(ahead, s).eps", "added, not averaged"),
        (" and t < 1", "", "the first step is Heun's as well"),
        ("0 < s and ", "", "it asks for the noise at s = 0"),
    ],
    "dial_step": [
        ("(sigma_s**2 - fresh**2).sqrt()", "sigma_s", "the kept noise is not made smaller"),
        ("fresh**2", "fresh", "sigma_eta instead of its square"),
        ("(1 - alpha_t**2 / alpha_s**2)", "(1 - alpha_t / alpha_s)", "the paper's alpha_t is the square of ours"),
        ("return alpha_s", "return alpha_t", "as it was before the step"),
    ],
    "grid_of_times": [
        ("steps + 1", "steps", "S times are only S - 1 steps"),
        (".round() / 1000", " / 1000", "not all of these times were trained"),
        ("linspace(1000, 0", "linspace(0, 1000", "it runs upwards"),
        (".round() / 1000", ".round()", "DDPM's k"),
        ("steps + 1, dtype=torch.float64).round()", "steps + 1, dtype=torch.float64).round()[:-1]", "the last time is missing"),
    ],
    "bits": [
        (" / math.log(2)", "", "these are nats"),
        (" / math.log(2)", " * math.log(2)", "multiplied by ln 2"),
        ("nats.sum(", "nats.mean(", "averaged over the dimensions"),
        ("nats.sum(dim=(1, 2, 3))", "nats.sum()", "summed over the pictures too"),
        ("log_variance.exp()", "(log_variance / 2).exp()", "exp of half the log-variance is sigma"),
    ],
    "best_square": [
        (".clamp(min=0)", "", "a square cannot be negative"),
        ("gamma**2", "gamma", "gamma is not squared"),
        (".clamp(min=0)", ".clamp(min=0).sqrt()", "that is |w|"),
    ],
    "vae_loss": [
        ("decode(z)", "decode(z.detach())", "no gradient comes through the sample"),
        ("log_variance).sum(", "log_variance).mean(", "the divergence is averaged over the latent"),
        ("square().mean(", "square().sum(", "the error is summed over the pixels"),
        ("(log_variance / 2).exp() * noise", "log_variance.exp() * noise", "multiplied by the variance"),
        ("return error + kl_weight * divergence", "return (error + kl_weight * divergence).mean()", "for the whole batch"),
    ],
    "for_small": [
        ("alpha / c, r * sigma / c", "alpha, r * sigma", "alpha^2 + sigma^2 is not 1"),
        (".sqrt()", "", "c has no root"),
        ("r * sigma", "r**2 * sigma", "the noise is too weak"),
        ("r * sigma", "sigma", "that is the cosine schedule"),
    ],
    "same_cost": [
        ("(steps * of_ldm + of_decoder)", "steps * (of_ldm + of_decoder)", "not in every step"),
        (" + of_decoder", "", "the decoder is forgotten"),
        (" / of_ddpm", "", "that is the cost in FLOPs"),
    ],
    "latent_std": [
        ("log_variance.exp().mean(dim=(0, 2, 3))", "0", "the spread of the means alone"),
        ("log_variance.exp()", "(log_variance / 2).exp()", "exp of half the log-variance is sigma"),
        ("(0, 2, 3)", "(0, 1, 2, 3)", "one value for all"),
        (".sqrt()", "", "the root is missing"),
        ("dim=(0, 2, 3)", "dim=0", "every position has a value of its own"),
    ],
    "away_from": [
        ("for labels in (unwanted, wanted)", "for labels in (wanted, unwanted)", "wanted and unwanted have changed places"),
        ("(unwanted, wanted)", "(torch.full_like(wanted, NO_CLASS), wanted)", "that is plain guidance"),
        ("Prediction(u.x0 + w * (c.x0 - u.x0)", "Prediction(c.x0", "only eps is guided"),
        ("u.x0 + w * (c.x0 - u.x0), u.eps + w * (c.eps - u.eps)", "c.x0 + w * (c.x0 - u.x0), c.eps + w * (c.eps - u.eps)", "the w of Ho & Salimans"),
    ],
    "of_both": [
        ("n + w * (p - n)", "n + w * (p - n) + n", "counts twice"),
        ("n + w * (p - n) + w * (q - n)", "n + w * ((p + q) / 2 - n)", "towards the mean of both"),
        ("(p - n) + w * (q - n)", "p + w * q", "nothing is subtracted"),
        ("torch.full_like(a, NO_CLASS)", "torch.zeros_like(a)", "label 0 stands for none"),
    ],
    "hidden": [
        ("chance < p", "chance > p", "it hides all but a share p"),
        ("NO_CLASS", "0", "label 0 stands for none"),
        ("NO_CLASS", "10", "10 stands for none"),
        ("chance < p", "chance[0] < p", "all or none"),
        ("torch.where(chance < p, NO_CLASS, labels)", "labels[chance >= p]", "the pictures are left out"),
    ],
    "read_masked": [
        ("-torch.inf", "0", "the padding's score is 0"),
        ("math.sqrt(q.shape[-1])", "q.shape[-1]", "divided by d"),
        (" / math.sqrt(q.shape[-1])", "", "the root of d is missing"),
        ("dim=-1", "dim=1", "the softmax runs along the places"),
        ("scores.masked_fill(~real[:, None], -torch.inf)", "scores", "nothing masks it"),
    ],
    "in_two_places": [
        ("upper * p + (1 - upper) * q", "(1 - upper) * p + upper * q", "upper and lower have changed places"),
        ("upper * p + (1 - upper) * q", "(p + q) / 2", "the mask does not matter"),
        ("(1 - upper) * q", "q", "the second guess is added everywhere"),
    ],
    "flops_of_tokens": [
        ("2 * 2 * ", "2 * ", "half of it"),
        ("2 * 2 * ", "", "a quarter of it"),
        (" * tokens", "", "for a single token"),
    ],
    "flow_step": [
        ("x_t + (s - t)", "x_t - (s - t)", "one sign is wrong"),
        (" / t", "", "the division by t in (4) is missing"),
        (" / t", " / (1 - t)", "divided by 1 - t"),
        ("x_t + (s - t) * u", "x_t - t * u", "it goes all the way"),
    ],
    "on_the_cosine": [
        ("x_t / c", "x_t", "the state is not divided by c"),
        (".sqrt()", "", "c has no root"),
        ("x_t / c", "x_t * c", "multiplied by c"),
        ("fine[position]", "t", "the time is left as it is"),
        ("sigma / alpha, t / (1 - t)", "sigma, t + 0 * (1 - t)", "at which sigma agrees"),
    ],
    "remembering": [
        ("- 0.5 * before", "+ 0.5 * before", "a step twice as long"),
        ("1.5 * now - 0.5 * before", "(now + before) / 2", "the two are averaged"),
        ("before = None", "before = torch.zeros_like(x)", "nothing to remember"),
        ("1.5 * now - 0.5 * before", "1.5 * before - 0.5 * now", "now and before have changed places"),
        ("before = now", "before = now if before is None else before", "the very first velocity"),
    ],
    "without_bias": [
        ("solution[0, 0]", "solution[1, 0]", "that is the slope"),
        ("1 / sizes", "sizes", "that is a line over N"),
        ("1 / sizes", "1 / sizes.sqrt()", "that is a line over 1 / sqrt(N)"),
        ("solution[0, 0]", "solution.sum()", "at N = 1"),
    ],
    "fraction_nearer": [
        ("to_train < to_test", "to_train > to_test", "nearer to the test set"),
        ("min(dim=1)", "min(dim=0)", "the minimum is taken for each real picture"),
        ("min(dim=1).values", "mean(dim=1)", "all distances are averaged"),
        (".double().mean()", ".sum()", "that is their number"),
        (".double().mean()", "", "one answer for each sample"),
    ],
    "diagonal_frechet": [
        (".std(0)", ".var(0)", "variances are compared"),
        ("(a.mean(0) - b.mean(0)) ** 2", "(a.mean(0) - b.mean(0)).abs()", "the distance of the means is not squared"),
        (".sum()", ".mean()", "averaged over the features"),
        (".sum()", "", "one number for each feature"),
        (".sum()", ".sum().sqrt()", "(1) is its square"),
    ],
    "first_weights_left": [
        (".clamp(max=d)", "", "the decay is not limited"),
        ("clamp(max=d)", "clamp(min=d)", "the larger of the two"),
        (".prod()", "[-1]", "the decay of the last update"),
        (".prod()", ".sum()", "the decays are added"),
        ("torch.arange(n,", "torch.arange(1, n + 1,", "counted from 1"),
    ],
    "noise_ratio": [
        ("alpha * picture", "picture", "alpha times, not once"),
        (" / sigma", "", "that is the noise itself"),
        (".sqrt()", "", "the root of the mean square is missing"),
        ("dim=(1, 2, 3)", "dim=(0, 1, 2, 3)", "for the whole batch"),
    ],
    "in_full_range": [
        ("2 * y_t - alpha", "2 * y_t", "the shift is missing"),
        ("(2 * y_t - alpha)", "2 * (y_t - alpha)", "before it is doubled"),
        (" ** 0.5", "", "the root is missing"),
        ("(alpha**2 + 4 * sigma**2) ** 0.5", "1", "is not 1"),
        ("2 * y_t - alpha", "2 * y_t - 1", "the shift is 1"),
    ],
}  # fmt: skip


@functools.cache
def section(chapter: str) -> tuple[list, list[str]]:
    """The code cells of a chapter's exercises, and the blocks of code in its solutions."""
    cells = jupytext.read(SOURCES[chapter]).cells
    start = next(i for i, cell in enumerate(cells) if "## Exercises" in cell.source)
    text = "\n".join(cell.source for cell in cells[start:] if cell.cell_type == "markdown").split("## Exercises")[1]
    shown = [cell for cell in cells[start:] if "remove-cell" not in cell.metadata.get("tags", [])]
    stubs = [cell for cell in shown if cell.cell_type == "code"]
    return stubs, re.findall(r"```python\n(.*?)```", text.split("## Summary")[0], re.DOTALL)


@functools.cache
def imports(chapter: str) -> dict:
    """What the chapter has imported before its exercises begin."""
    tree = ast.parse(SOURCES[chapter].read_text(encoding="utf-8"))
    namespace = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(ast.unparse(node), namespace)
    return namespace


def checked(chapter: str) -> list[str]:
    """The names of the functions that a chapter hands to check, in order."""
    return re.findall(r"^check\((\w+)\)$", "\n".join(cell.source for cell in section(chapter)[0]), re.MULTILINE)


WHERE = {name: chapter for chapter in SOURCES for name in checked(chapter)}
every_chapter = pytest.mark.parametrize("chapter", SOURCES)
every_exercise = pytest.mark.parametrize("name", EXERCISES)


def solution(name: str) -> str:
    """The code that the chapter shows as its solution."""
    (code,) = [block for block in section(WHERE[name])[1] if f"def {name}(" in block]
    return code


def defined(name: str, code: str):
    """The function of this name, once the code has run behind the chapter's imports."""
    namespace = dict(imports(WHERE[name]))
    exec(code, namespace)
    return namespace[name]


def hear(capsys, attempt) -> str:
    """The line that check prints."""
    capsys.readouterr()
    check(attempt)
    (line,) = capsys.readouterr().out.splitlines()
    return line


def test_every_exercise_of_the_package_stands_in_its_chapter_and_the_other_way_round():
    names = [[exercise.name for exercise in chapter.EXERCISES] for chapter in CHAPTERS]
    assert names == [checked(chapter) for chapter in SOURCES]
    assert len(EXERCISES) == sum(map(len, names)), "two exercises have one name"


@every_chapter
def test_a_chapter_has_three_or_four_exercises_and_checks_three(chapter):
    text = SOURCES[chapter].read_text(encoding="utf-8").split("# ## Exercises\n")[1].split("# ## Summary\n")[0]
    numbers = [int(number) for number in re.findall(r"^# \*\*(\d)\. ", text, re.MULTILINE)]
    assert numbers in ([1, 2, 3], [1, 2, 3, 4])
    assert len(checked(chapter)) >= 3
    assert text.count("<details><summary>Solution</summary>") == text.count("</details>") == len(numbers)


@every_chapter
def test_an_unfilled_stub_is_told_so_in_one_line_that_is_compared(chapter, capsys):
    namespace = dict(imports(chapter))
    for cell in section(chapter)[0]:
        exec(cell.source, namespace)
        assert capsys.readouterr().out == f"{EMPTY}\n"
        assert cell.metadata["tags"] == ["nbval-check-output"]


@every_exercise
def test_the_solution_is_right(name, capsys):
    assert hear(capsys, defined(name, solution(name))) == f"Right: {EXERCISES[name].proved}"


@every_exercise
def test_the_solution_needs_nothing_but_the_imports_of_its_chapter(name):
    """Nothing that the chapter has overwritten by the time a reader pastes the solution."""
    tree = ast.parse(SOURCES[WHERE[name]].read_text(encoding="utf-8"))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    used = {node.id for node in ast.walk(ast.parse(solution(name))) if isinstance(node, ast.Name)}
    assert not used & assigned & set(imports(WHERE[name]))


@every_exercise
def test_each_mistake_hears_what_is_wrong_with_it(name, capsys):
    code, told = solution(name), []
    for piece, slip, expected in MISTAKES[name]:
        assert piece in code, f"the solution has no {piece} any more"
        told.append(hear(capsys, defined(name, code.replace(piece, slip))))
        assert expected in told[-1]
        assert told[-1].removeprefix("Not yet: ") in EXERCISES[name].mistakes
    assert len(set(told)) >= 3


@every_exercise
def test_questions_tell_all_mistakes_apart(name):
    exercise = EXERCISES[name]
    kinds = {"right": exercise.right, **exercise.mistakes}
    results = {message: exercise.results(function) for message, function in kinds.items()}
    for (one, ones), (other, others) in itertools.combinations(results.items(), 2):
        assert not same(ones, others), f"these look alike: {one} / {other}"


@every_exercise
def test_whatever_is_said_fits_on_a_line(name):
    for message in (EXERCISES[name].proved, *EXERCISES[name].mistakes):
        assert len(f"Not yet: {message}") <= 120
        assert "\n" not in message


# Where the library has no such function, the right one has to prove itself.


def test_the_ideal_denoiser_of_two_points_is_the_toy_of_chapter_1():
    x_t, alpha, sigma = torch.linspace(-2, 2, 9).double()[:, None], *torch.tensor([0.8, 0.6]).double()
    found = EXERCISES["ideal_x0"].right(x_t, alpha, sigma, torch.tensor([-1.0, 1.0]), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(found, torch.tanh(alpha * x_t / sigma**2))


def test_the_best_square_has_the_highest_evidence():
    s, variance = 0.6, torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    squares = torch.linspace(0, 4, 40_001, dtype=torch.float64)[:, None]
    evidence = -0.5 * ((squares + s**2).log() + variance / (squares + s**2))  # (40001, 3)
    torch.testing.assert_close(
        EXERCISES["best_square"].right(variance, s), squares[evidence.argmax(0), 0], rtol=0, atol=1e-4
    )


def test_a_figure_without_bias_is_that_of_infinitely_many_samples():
    sizes = torch.tensor([100.0, 500.0, 1e9], dtype=torch.float64)
    assert EXERCISES["without_bias"].right(sizes, 2 + 30 / sizes).item() == pytest.approx(2)


def test_the_step_that_remembers_has_order_two():
    start = torch.ones(1, 1, dtype=torch.float64)
    ends = [EXERCISES["remembering"].right(lambda x, t: x, start, samplers.time_grid(steps)) for steps in (100, 200)]
    before, after = ((end - math.exp(-1)).abs().item() for end in ends)  # dx/dt = x, from t = 1 back to 0
    assert before / after == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("t", [0.15, 0.4, 0.8])
def test_on_the_cosine_a_model_of_one_path_serves_the_other(t):
    """Of numbers from N(0.3, 0.09) the best guess of x0 is known, on both paths."""

    def guess(x, alpha, sigma):
        return 0.3 + alpha * 0.09 * (x - alpha * 0.3) / (alpha**2 * 0.09 + sigma**2)

    x_t, t = torch.linspace(-2, 2, 9).double(), torch.tensor(t, dtype=torch.float64)
    moved, time = EXERCISES["on_the_cosine"].right(x_t, t)
    torch.testing.assert_close(guess(moved, *cosine(time)), guess(x_t, *rectified(t)), rtol=1e-4, atol=1e-4)


# What is said of any exercise, shown on two.


def pair(x, n):
    return x + n, x - n


def halved(x):
    return x / 2


def numbers(generator):
    return {"small": (torch.rand(3, generator=generator),), "large": (10 + torch.rand(3, generator=generator),)}


PAIR = Exercise(pair, lambda generator: {"one": (torch.rand(3, generator=generator), 2)}, "", {})
HALVED = Exercise(halved, numbers, "", {"doubled": lambda x: 2 * x})


def crash(x):
    return x.no_such_thing


def write(x):
    x /= 2
    return x.clone()


@pytest.mark.parametrize(
    ("attempt", "told"),
    [
        (crash, "it stops at `return x.no_such_thing` with AttributeError: 'Tensor' object has no attribute"),
        (lambda: 0, "TypeError"),
        (lambda x: None, "it returns None"),
        (lambda x: 0.5, "it returns a float, expected: a tensor of shape (3,)"),
        (lambda x: (x, x), "it returns 2 things, expected: a tensor of shape (3,)"),
        (lambda x: x.numpy() / 2, "it returns a ndarray"),
        (lambda x: x[:, None] / 2, "it returns the shape (3, 1), expected: (3,)"),
        (lambda x: x / 0, "3 of 3 numbers are not finite (asked: small)"),
        (lambda x: -x / 2, "every number is -1 times what it should be"),
        (lambda x: 2 * x, "doubled"),
        (lambda x: x / 2 + (x > 5), "numbers are off by up to 1 (asked: large), and right for small"),
        (write, "it writes into its argument x"),
    ],
)
def test_any_other_answer_hears_what_is_wrong_in_one_line(attempt, told):
    right, message = judge(HALVED, attempt)
    assert not right
    assert told in message
    assert "\n" not in message


def test_of_several_numbers_the_wrong_one_is_named():
    assert judge(PAIR, lambda x, n: [x + n, x - n])[0]
    assert "in number 2 of the 2 that it returns" in judge(PAIR, lambda x, n: (x + n, x))[1]
    assert judge(PAIR, lambda x, n: x + n)[1] == "it returns a Tensor, expected: 2 tensors"


def test_check_wants_a_function_that_it_knows(capsys):
    assert "there is no exercise 'halved'" in hear(capsys, halved)
    assert "check was given a Tensor" in hear(capsys, torch.zeros(2))


def test_half_the_digits_are_enough():
    """A reader may compute in float32 or leave the graph attached."""
    assert judge(HALVED, lambda x: (x.double() / 2).requires_grad_())[0]
    assert judge(EXERCISES["noisy"], lambda *asked: EXERCISES["noisy"].right(*asked).float())[0]
