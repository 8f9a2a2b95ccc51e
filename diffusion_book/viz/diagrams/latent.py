"""Latents: the autoencoder, and diffusion between its halves."""

from __future__ import annotations

from diffusion_book.networks.vae import VAEConfig
from diffusion_book.viz.diagrams.digit import digit
from diffusion_book.viz.diagrams.kit import AUTOENCODER, LATENT, NOISE, SMALL, Canvas, Diagram


def _size(config: VAEConfig) -> str:
    return " × ".join(map(str, config.latent_shape))


def vae(config: VAEConfig | None = None) -> Diagram:
    """The variational autoencoder: encoder, mean and standard deviation, reparameterised sample, decoder.

    Args:
        config: of the autoencoder; None takes the library's default.

    Source: Kingma & Welling 2013, section 2.4.
    """
    config = config or VAEConfig()
    side = config.image_size
    canvas, y = Canvas(276), 90.0
    canvas.picture(2, y - 22, 44, digit())
    canvas.text(24, y + 34, "$x$")
    canvas.arrow([(48, y), (60, y)])
    canvas.funnel(60, y, 62, 96, 52, "encoder\n$q_φ$", AUTOENCODER)
    for height, formula in ((y - 24, "$μ$"), (y + 24, "$σ$")):
        canvas.arrow([(122, height / 2 + y / 2), (140, height)])
        canvas.circle(153, height, 13, formula, AUTOENCODER)
    canvas.arrow([(166, y - 24), (207, y - 6)])
    canvas.arrow([(166, y + 24), (181, y + 24)])
    canvas.plus(189, y + 24, "×")
    canvas.arrow([(189, y + 66), (189, y + 32)], NOISE)
    canvas.circle(189, y + 79, 13, "$ε$", NOISE)
    canvas.text(189, y + 106, "from $N(0, I)$", NOISE)
    canvas.arrow([(196, y + 19), (209, y + 6)])
    canvas.plus(215, y)
    canvas.arrow([(223, y), (232, y)])
    canvas.circle(245, y, 13, "$z$", LATENT)
    canvas.arrow([(258, y), (268, y)])
    canvas.funnel(268, y, 62, 52, 96, "decoder\n$p_θ$", AUTOENCODER)
    canvas.text(180, 16, "$z = μ + σ ε$, so that gradients reach $μ$ and $σ$", size=SMALL)
    canvas.arrow([(299, y + 45), (299, y + 62)])
    canvas.picture(277, y + 64, 44, digit())
    canvas.text(299, y + 122, "$x\u0302$")
    canvas.text(2, y + 56, f"1 × {side} × {side}", anchor="start", size=SMALL)
    canvas.text(2, y + 106, f"$μ$, $σ$, $ε$, $z$:\n{_size(config)} each", anchor="start", size=SMALL)
    canvas.text(180, y + 150, "the loss: the error of $x\u0302$, and the KL", size=SMALL)
    canvas.text(180, y + 171, "divergence of $N(μ, σ^2)$ from $N(0, I)$", size=SMALL)
    return canvas.finish(
        "A variational autoencoder. The encoder makes a mean and a standard deviation of a picture. Noise times the "
        "standard deviation, plus the mean, is the latent z. The decoder makes a picture of it."
    )


def latent_diffusion(config: VAEConfig | None = None) -> Diagram:
    """Latent diffusion: trained on what a frozen encoder gives, sampled before a frozen decoder.

    Args:
        config: of the autoencoder; None takes the library's default.

    Source: Rombach et al. 2022, figure 3.
    """
    config = config or VAEConfig()
    channels, _, cells = config.latent_shape
    canvas = Canvas(356)
    canvas.text(2, 14, "Training", anchor="start", bold=True)
    y = 78.0
    canvas.picture(2, y - 20, 40, digit())
    canvas.text(22, y + 32, "$x$")
    canvas.arrow([(44, y), (56, y)])
    canvas.funnel(56, y, 60, 84, 46, "encoder", AUTOENCODER, dashed=True)
    canvas.text(86, y + 56, "frozen", AUTOENCODER, size=SMALL)
    canvas.arrow([(116, y), (128, y)])
    canvas.sheets(130, y - 14, 28, min(channels, 4), LATENT, cells)
    canvas.text(146, y + 30, "$z_0$")
    canvas.arrow([(166, y), (181, y)])
    canvas.plus(190, y)
    canvas.arrow([(190, y + 38), (190, y + 9)], NOISE)
    canvas.text(190, y + 48, "$ε$", NOISE)
    canvas.arrow([(199, y), (212, y)])
    canvas.sheets(214, y - 14, 28, min(channels, 4), NOISE, cells)
    canvas.text(230, y + 30, "$z_t$")
    canvas.arrow([(250, y), (266, y)])
    canvas.box(266, y - 24, 90, 48, "U-Net\nlearns $v$", LATENT)

    canvas.line([(2, 160), (358, 160)], NOISE, 1, dashed=True)
    canvas.text(2, 180, "Sampling", anchor="start", bold=True)
    y = 262.0
    canvas.sheets(4, y - 14, 28, min(channels, 4), NOISE, cells)
    canvas.text(20, y + 30, "$z_1$")
    canvas.text(20, y - 38, "noise", NOISE, size=SMALL)
    canvas.arrow([(42, y), (62, y)])
    canvas.box(62, y - 24, 90, 48, "U-Net,\none step", LATENT)
    canvas.arrow([(142, y - 24), (142, y - 46), (72, y - 46), (72, y - 24)], LATENT)
    canvas.text(107, y - 57, "again and again", LATENT, size=SMALL)
    canvas.arrow([(152, y), (172, y)])
    canvas.sheets(174, y - 14, 28, min(channels, 4), LATENT, cells)
    canvas.text(190, y + 30, "$z_0$")
    canvas.arrow([(212, y), (228, y)])
    canvas.funnel(228, y, 64, 46, 84, "decoder", AUTOENCODER, dashed=True)
    canvas.text(260, y + 56, "frozen", AUTOENCODER, size=SMALL)
    canvas.arrow([(292, y), (308, y)])
    canvas.picture(312, y - 22, 44, digit())
    canvas.text(334, y + 34, "$x$")
    pixels = config.image_size**2
    numbers = channels * cells * cells
    canvas.text(180, 343, f"{pixels:,} pixels become {numbers} numbers: {_size(config)}", size=SMALL)
    return canvas.finish(
        "Latent diffusion in two rows. Training: a frozen encoder turns a picture into a latent, noise is added, a U-Net "
        "learns to undo it. Sampling: the U-Net works from a noise latent step by step, and a frozen decoder paints once."
    )
