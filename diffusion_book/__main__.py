"""`python -m diffusion_book` is `diffusion-book`."""

from diffusion_book.cli.main import main

if __name__ == "__main__":
    main()
