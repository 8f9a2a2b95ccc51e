"""The toy: its network, its step of training and its walk are PyTorch's and the library's; on the page it learns."""

import math
import re

import controls
import pytest
import torch
from torch.testing import assert_close

from diffusion_book.denoiser import Denoiser, clipped
from diffusion_book.guidance import guided
from diffusion_book.networks.mlp import MLP
from diffusion_book.samplers import ddim, sample
from diffusion_book.schedules import add_noise, cosine, rectified
from diffusion_book.system.errors import BookError
from diffusion_book.targets import TARGETS, target_value
from diffusion_book.viz.toy import toy, toy_mathematics

PHONE = 390  # pixels
LIMIT = 3.0  # of the plane
every_target = pytest.mark.parametrize("target", TARGETS)


# The mathematics beside PyTorch

TRAIN = """async ([target, steps]) => {
  const random = randomFrom(3), batch = batchOf(dataOf("mixture", random), random), list = numbers => Array.from(numbers);
  const parameters = newParameters(LAYERS, random), begun = list(parameters), optimise = adamW(parameters), losses = [];
  for (let k = 0; k < steps; k++) {
    const { loss, gradient } = lossAndGradient(parameters, target, batch);
    optimise(gradient, RATE), losses.push(loss);
  }
  return {begun, losses, ended: list(parameters), rate: RATE,
          batch: Object.fromEntries(Object.entries(batch).map(([name, values]) => [name, list(values)]))};
}"""
WALK = """async ([target, scale, steps]) => {
  const random = randomFrom(4), parameters = newParameters(LAYERS, random), noise = normals(random, 26);
  const labels = Int8Array.from({length: 13}, (_, n) => n % 3), work = walk({parameters, target}, noise, labels, steps, scale, 5);
  let next;
  do next = work.next(); while (!next.done);
  return {parameters: Array.from(parameters), states: next.value.map(state => Array.from(state)),
          straightness: straightness(next.value)};
}"""


@pytest.fixture
def mathematics(open_page):
    page = open_page()
    page.goto("about:blank")
    page.add_script_tag(content=toy_mathematics())
    return page


def network_of(parameters: list[float]) -> MLP:
    network = MLP().double()
    torch.nn.utils.vector_to_parameters(torch.tensor(parameters, dtype=torch.float64), network.parameters())
    return network


def schedule_of(target: str):
    return rectified if target == "velocity" else cosine


@every_target
def test_training_is_pytorchs(mathematics, target):
    """The same weights, the same batch: after one step of AdamW, and after ten, the weights are the same."""
    for steps in (1, 10):
        made = mathematics.evaluate(TRAIN, [target, steps])
        batch = {name: torch.tensor(values, dtype=torch.float64) for name, values in made["batch"].items()}
        x0, eps, t, labels = (batch[name] for name in ("x0", "eps", "t", "labels"))
        x0, eps, labels, schedule = x0.reshape(-1, 2), eps.reshape(-1, 2), labels.long(), schedule_of(target)
        assert set(labels.tolist()) == {-1, 0, 1, 2}
        network = network_of(made["begun"])
        optimizer = torch.optim.AdamW(network.parameters(), lr=made["rate"])
        for step in range(steps):
            wanted = target_value(TARGETS[target], x0, eps, *schedule(t))
            loss = (network(add_noise(schedule, x0, eps, t), t, labels=labels) - wanted).square().mean()
            assert loss.item() == pytest.approx(made["losses"][step], abs=1e-6)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ended = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
        found = torch.tensor(made["ended"], dtype=torch.float64)
        assert (found - torch.tensor(made["begun"], dtype=torch.float64)).abs().max() > 0.5 * made["rate"]
        assert_close(found, ended, atol=1e-5, rtol=0)


@every_target
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_walk_is_the_librarys(mathematics, target, scale):
    """`ddim` with guidance, and on diffusion's path x0 kept inside the plane: every state is the same."""
    made = mathematics.evaluate(WALK, [target, scale, 8])
    network, schedule = network_of(made["parameters"]), schedule_of(target)
    found = torch.tensor(made["states"], dtype=torch.float64).reshape(9, 13, 2)
    denoiser = guided(Denoiser(network, schedule, TARGETS[target]), scale)
    if target != "velocity":
        denoiser = clipped(denoiser, schedule, -LIMIT, LIMIT)
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    given = {"schedule": schedule, "generator": torch.Generator(), "labels": torch.arange(13) % 3}
    with torch.no_grad():
        states = [state.x for state in sample(denoiser, found[0], times, ddim, **given)]
    assert_close(found, torch.stack(states), atol=1e-5, rtol=0)
    chord = found[0] - found[-1]
    off = ((found[:-1] - found[1:]) * 8 - chord).square().sum(2).mean() / chord.square().sum(1).mean()
    assert made["straightness"] == pytest.approx(off.item(), rel=1e-9)


# On the page

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Toy</title><body style="margin: 8px">{figure}</body></html>"""


class Toy:
    """A toy on a page of its own, opened from a file."""

    def __init__(self, folder, page, *points, **begin):
        (folder / "toy.html").write_text(PAGE.format(figure=toy(*points, **begin).text), encoding="utf-8")
        page.goto((folder / "toy.html").as_uri())
        self.page, self.part = page, page.locator("figure.toy")
        self.wait("toy.states")

    def wait(self, condition: str) -> None:
        self.page.wait_for_function(
            f"(() => {{ const {{toy}} = document.querySelector('figure.toy'); return {condition}; }})()"
        )

    def get(self, expression: str):
        return self.part.evaluate(f"({{toy}}) => {expression}")

    def press(self, name: str) -> None:
        self.part.get_by_role("button", name=name, exact=True).click()

    def train(self, steps: int) -> None:
        """So many steps of training, then a pause, and the picture of the network as it is then."""
        until = self.get("toy.losses.length") + steps
        if not self.get("toy.playing"):
            self.press("Play")
        self.wait(f"toy.losses.length >= {until}")
        self.press("Pause")
        self.wait("toy.shown === toy.losses.length")

    def set(self, **values) -> None:
        """Move a control, and wait for the picture."""
        for name, value in values.items():
            self.part.evaluate(
                """(figure, [name, value]) => {
                  const input = figure.querySelector(`[name=${name}]`);
                  figure.toy.states = undefined;
                  input.value = value;
                  input.dispatchEvent(new Event("input", {bubbles: true}));
                }""",
                [name, str(value)],
            )
            self.wait("toy.states")

    def ends(self) -> torch.Tensor:
        return torch.tensor(self.get("Array.from(toy.states.at(-1))")).reshape(-1, 2)


def test_a_ring_is_learnt_and_reflow_straightens_it(tmp_path, open_page):
    page = open_page()
    ring = Toy(tmp_path, page, "ring")
    untrained = ring.get("toy.distance")
    assert untrained > 0.06
    ring.train(500)
    assert ring.get("toy.distance") < 0.03
    radius = ring.ends().norm(dim=1)
    assert ((radius > 1.4) & (radius < 2.0)).float().mean() > 0.7, "the ring's radius is 1.7"
    bent, loss = ring.get("toy.straightness"), ring.get("toy.mean")
    assert bent > 0.5
    assert loss < ring.get("toy.losses[0]")

    ring.press("Reflow")
    ring.wait("toy.pairs && toy.playing")
    ring.train(200)
    assert ring.get("toy.straightness") < 0.2 * bent
    assert ring.get("toy.distance") < 0.06
    ring.set(steps=1)
    assert ring.get("toy.distance") < 0.06, "one step is enough"
    assert not page.troubles
    assert all(address.startswith("file:") for address in page.asked), page.asked


def test_a_few_seconds_give_something_that_looks_right(tmp_path, open_page):
    """Points end where data are, and data are where points end. Seconds are of the page's thread: others do not count."""
    page = open_page()
    moons = Toy(tmp_path, page, "moons")
    data = torch.tensor(moons.get("toy.data.points")).reshape(-1, 2)

    def near() -> list[float]:
        apart = torch.cdist(moons.ends(), data)
        return [(apart.amin(dim) < 0.3).float().mean().item() for dim in (1, 0)]

    assert min(near()) < 0.65, "untrained"
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def seconds() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(each["value"] for each in metrics if each["name"] == "TaskDuration")

    begun = seconds()
    moons.press("Play")
    while seconds() < begun + 5:
        page.wait_for_timeout(100)
    moons.press("Pause")
    moons.wait("toy.shown === toy.losses.length")
    assert min(near()) > 0.9, near()


def test_guidance_sharpens_the_class(tmp_path, open_page):
    """The posterior of the class at the ends, by Bayes' rule for the three bells that the mixture is drawn from."""
    mixture = Toy(tmp_path, open_page(), "mixture", "v", label=1)
    mixture.train(400)
    angles = 2 * math.pi * (torch.arange(3) / 3 + 1 / 4)
    centres = 1.1 * torch.stack([angles.cos(), angles.sin()], 1)
    sure = {}
    for scale in (0, 1, 3):
        mixture.set(scale=scale)
        distance = (mixture.ends()[:, None] - centres).square().sum(2)  # (N, 3)
        sure[scale] = (-distance / (2 * 0.45**2)).softmax(1)[:, 1].mean().item()
    assert sure[0] < 0.5 < 0.8 < sure[1] < sure[3], sure


def test_play_pause_and_step(tmp_path, open_page):
    page = open_page()
    moons = Toy(tmp_path, page, "moons", "noise")
    assert moons.get("toy.losses.length") == 0
    assert moons.part.get_by_role("button", name="Reflow").is_disabled(), "it takes straight paths"
    moons.press("One step")
    moons.press("One step")
    moons.wait("toy.shown === 2")
    assert moons.get("toy.losses.length") == 2
    moons.press("Play")
    assert moons.part.get_by_role("button", name="One step").is_disabled()
    moons.wait("toy.losses.length > 20")
    moons.press("Pause")
    paused = moons.get("toy.losses.length")
    page.wait_for_timeout(300)
    assert moons.get("toy.losses.length") == paused
    assert f"Paused after {paused} steps." in moons.part.get_by_role("status").inner_text()
    moons.press("Start again")
    moons.wait("toy.shown === 0")
    for target in TARGETS:
        moons.set(target=target)
        assert moons.get("toy.target") == target
        moons.press("One step")
    assert moons.part.get_by_role("button", name="Reflow").is_enabled()
    assert not page.troubles


def test_points_are_drawn_with_mouse_and_keys(tmp_path, open_page):
    page = open_page()
    own = Toy(tmp_path, page, "own")
    own.press("Play")
    assert "Draw some points first." in own.part.get_by_role("status").inner_text()
    sheet = own.part.locator("canvas.toy-data")
    box = sheet.bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"], steps=5)
    page.mouse.up()
    points = torch.tensor(own.get("toy.data.points")).reshape(-1, 2)
    assert len(points) > 30
    assert points[:, 0].min() < -1.2
    assert points[:, 0].max() > 1.2
    assert points[:, 1].abs().max() < 0.4

    sheet.focus()
    own.part.locator("[name=pen]").select_option("green")
    sheet.focus()
    for _ in range(10):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    new = torch.tensor(own.get("toy.data.points")).reshape(-1, 2)[len(points) :]
    assert len(new) == 5
    assert own.get("toy.data.labels.at(-1)") == 2
    assert_close(new.mean(0), torch.tensor([0.0, 1.5]), atol=0.2, rtol=0)
    page.keyboard.press("Backspace")
    assert own.get("toy.data.labels.length") == len(points)
    own.train(5)
    own.press("Wipe the points")
    assert own.get("toy.data.labels.length") == 0
    assert not own.get("toy.playing")
    assert not page.troubles


def test_page_never_stalls(tmp_path, browser, open_page):
    """No task of the page takes 50 ms of its thread's own time while the toy trains, draws and makes pairs."""
    page = open_page()
    ring = Toy(tmp_path, page, "ring")
    ring.train(30)  # by then the browser has compiled what is asked often
    controls.watch_tasks(browser, page)
    ring.train(60)
    ring.press("Reflow")
    ring.wait("toy.pairs")
    ring.train(20)
    tasks = controls.tasks_seen(browser)
    assert max(tasks) < 50, f"milliseconds: {sorted(tasks)[-5:]}"


def test_names_for_those_who_do_not_see_it(tmp_path, open_page):
    page = open_page()
    mixture = Toy(tmp_path, page, "mixture", label=2, guidance_scale=3, t=0.3)
    snapshot = mixture.part.aria_snapshot()
    for name in (
        'button "Play"', 'button "One step"', 'button "Start again"', 'combobox "points"', 'combobox "predicts"',
        'combobox "class"', 'slider "guidance scale"', 'slider "time t"', 'slider "steps from noise"',
    ):  # fmt: skip
        assert name in snapshot, name
    assert "Data, 600 points: a mixture of three. Arrows: where points move at time 0.30, class green" in snapshot
    assert re.search(r"400 points on their way from noise, at time 0.30.*after 0 steps of training", snapshot)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    mixture.wait("toy.playing")
    assert page.evaluate("document.activeElement.textContent") == "Pause"


def test_toy_fits_a_phone(tmp_path, open_page):
    page = open_page(width=PHONE, height=844)
    Toy(tmp_path, page, "moons")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
    for part in page.locator("figure.toy :is(canvas, label, button):visible").all():
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE


def test_two_toys_on_a_page_do_not_disturb_each_other(tmp_path, open_page):
    page = open_page()
    figures = toy("moons").text + toy("ring", "v").text
    (tmp_path / "two.html").write_text(PAGE.format(figure=figures), encoding="utf-8")
    page.goto((tmp_path / "two.html").as_uri())
    found = page.evaluate("[...document.querySelectorAll('figure.toy')].map(({toy}) => toy.target)")
    assert found == ["velocity", "v"]
    assert not page.troubles


def test_what_cannot_be_is_refused():
    for begin, words in (
        (("square",), "square"),
        (("ring", "score"), "score"),
        (("ring", "v", {"label": 2}), "'ring' has no class 2"),
        (("ring", "v", {"guidance_scale": 9}), "guidance_scale must be 0 to 8, not 9"),
        (("ring", "v", {"steps": 0}), "steps must be 1 to 50, not 0"),
    ):
        *points, named = [*begin, {}] if not isinstance(begin[-1], dict) else begin
        with pytest.raises(BookError, match=re.escape(words)):
            toy(*points, **named)
