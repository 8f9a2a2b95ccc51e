"""Draw the README's pictures, the logo and the social card from the shipped weights: `make pictures`."""

from pathlib import Path

import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

import diffusion_book
from diffusion_book.evaluation.features import logits
from diffusion_book.models.recipes import RECIPES
from diffusion_book.viz.animation import save_animation
from diffusion_book.viz.grids import grid
from diffusion_book.viz.in_page import COUNT, start_of

HERE = Path(__file__).parent
ROWS, COLUMNS, ZOOM = 6, 20, 3  # of the picture: digits down and across, screen pixels for each of theirs
NOISY, STEPS = 13, 50  # the last columns are finished; steps of the sampler
LOGO_DIGIT = 3
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)  # of guidance, a row each
NIGHT, GOLD = "#14304f", "#ffd98a"  # the book's two colours


def banner(states: list[torch.Tensor]) -> Image.Image:
    """Every cell is another digit; from left to right they are further on the way from noise to picture."""
    canvas = torch.full((ROWS * 30, COLUMNS * 30), -1.0)
    for row in range(ROWS):
        for column in range(COLUMNS):
            step = STEPS * min(column / (NOISY - 1), 1.0)
            digit = states[round(step)][row * COLUMNS + column, 0]  # (28, 28)
            canvas[row * 30 + 1 : row * 30 + 29, column * 30 + 1 : column * 30 + 29] = digit
    pixels = ((canvas + 1) * 127.5).round().to(torch.uint8).numpy()
    image = Image.fromarray(pixels)
    return image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.NEAREST)


def logo(pictures: torch.Tensor, schedule) -> str:
    """The clearest 3 as 14 x 14 dots, noise in one corner and clean in the other, as SVG."""
    clearest = logits(pictures).softmax(1)[:, LOGO_DIGIT].argmax()
    x0 = torch.nn.functional.avg_pool2d(pictures[clearest], 2)[0]  # (14, 14)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    ramp = torch.arange(14) / 13
    alpha, sigma = schedule((0.7 - 1.4 * (ramp[:, None] + ramp[None]) / 2).clamp(0, 1))
    radius = ((alpha * x0 + sigma * eps + 1) / 2).clamp(0, 1) * 0.5
    dots = "".join(
        f'<circle cx="{x + 1.5}" cy="{y + 1.5}" r="{radius[y, x]:.2f}"/>'
        for y in range(14)
        for x in range(14)
        if radius[y, x] > 0.1
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" role="img" aria-label="A digit made of dots">'
        f'<rect width="16" height="16" rx="3" fill="{NIGHT}"/><g fill="{GOLD}">{dots}</g></svg>\n'
    )


def forming(states: list[torch.Tensor]) -> torch.Tensor:
    """Twelve digits on their way from noise, a frame every other step: (T, H, W), bytes."""
    frames = torch.stack([grid(state[:12], columns=6) for state in states[::2]])
    return frames.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


def guidance(pipe: diffusion_book.Pipeline) -> Image.Image:
    """Ten classes from ten noises; from row to row the guidance scale rises."""
    noise = pipe.noise(10, seed=4)
    rows = [pipe.sample(10, labels=range(10), guidance_scale=scale, noise=noise, seed=4) for scale in SCALES]
    image = Image.fromarray(grid(torch.cat(rows), columns=10).numpy())
    return image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)


def still(model: str) -> Image.Image:
    """What a live figure of a model begins with: the ten digits that it draws first, 280 x 28."""
    pipe = diffusion_book.load(model, device="cpu", precision="fp32")
    return Image.fromarray(grid(pipe.sample(COUNT, **start_of(pipe.recipe)), columns=COUNT, padding=0).numpy())


def social(digits: Image.Image) -> Image.Image:
    """The card that other sites show of a link to the book: its name above the digits, 1200 x 630."""
    card = Image.new("RGB", (1200, 630), NIGHT)
    digits = digits.resize((1200, 1200 * digits.height // digits.width), Image.Resampling.NEAREST)
    card.paste(digits, (0, card.height - digits.height))
    draw = ImageDraw.Draw(card)
    title, line = (ImageFont.truetype(findfont("DejaVu Sans"), size) for size in (84, 36))
    draw.text((60, 125), "The Diffusion Book", GOLD, title, anchor="lm")
    draw.text((62, 205), "Diffusion models built on handwritten digits", "white", line, anchor="lm")
    return card


if __name__ == "__main__":
    pipe = diffusion_book.load("ddpm", device="cpu", precision="fp32")
    states = [pipe.to_images(state.x) for state in pipe.states(range(ROWS * COLUMNS), steps=STEPS)]
    digits = banner(states)
    digits.save(HERE / "samples.png", optimize=True)
    social(digits).save(HERE / "_static" / "social.png", optimize=True)
    (HERE / "_static" / "logo.svg").write_text(logo(states[-1], pipe.schedule), encoding="utf-8")
    save_animation(forming(states), HERE / "forming.webp", milliseconds=80)
    classes = diffusion_book.load("ldm-concat", device="cpu", precision="fp32")
    guidance(classes).save(HERE / "guidance.png", optimize=True)
    for name in diffusion_book.list_models():
        if RECIPES[name].diffusion:
            still(name).save(HERE / "live" / "stills" / f"{name}.webp", quality=60, method=6)
    print(
        "docs/samples.png",
        "docs/_static/social.png",
        "docs/forming.webp",
        "docs/guidance.png",
        "docs/_static/logo.svg",
        "docs/live/stills/",
        sep="\n",
    )
