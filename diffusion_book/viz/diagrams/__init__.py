"""The book's schematics, each a function that returns a `Diagram`: part of the page, in its letters and its theme."""

from diffusion_book.viz.diagrams.book import library_map
from diffusion_book.viz.diagrams.chain import ddim_jumps, markov_chain, noise_to_data, posterior_product
from diffusion_book.viz.diagrams.condition import cross_attention, guidance_vectors, stacked_maps
from diffusion_book.viz.diagrams.flow import clocks, reflow
from diffusion_book.viz.diagrams.kit import Diagram
from diffusion_book.viz.diagrams.latent import latent_diffusion, vae
from diffusion_book.viz.diagrams.learning import memorisation
from diffusion_book.viz.diagrams.network import attention_block, residual_block, unet

__all__ = [
    "Diagram",
    "attention_block",
    "clocks",
    "cross_attention",
    "ddim_jumps",
    "guidance_vectors",
    "latent_diffusion",
    "library_map",
    "markov_chain",
    "memorisation",
    "noise_to_data",
    "posterior_product",
    "reflow",
    "residual_block",
    "stacked_maps",
    "unet",
    "vae",
]
