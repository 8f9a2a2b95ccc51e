// A model end to end: noise in, pictures out. diffusion_book/pipelines.py once more.

const AT_ONCE = 2048; // positions that the network works on at once: more would not be faster, and need more memory
const PADDING = 2; // pixels around a digit of 28 x 28

/** The network's output for a batch, part by part; `pause` is awaited between them, and may stop it by an error. */
async function run(model, x, t, labels, pause) {
  const { in_channels: channels, image_size: side, patch_size: p } = model.recipe.network;
  const size = channels * side * side, b = x.length / size, part = Math.max(1, Math.floor(AT_ONCE / (side / p) ** 2));
  const output = new Float32Array(x.length);
  for (let begin = 0; begin < b; begin += part) {
    const end = Math.min(b, begin + part);
    await pause();
    const times = new Array(end - begin).fill(t);
    output.set(unet(model, x.subarray(begin * size, end * size), times, labels?.slice(begin, end)), begin * size);
  }
  return output;
}

/** (x_t, t, labels) -> {x0, eps}, guided and clipped as the library's pipeline does it. */
function denoiser(model, scale, pause) {
  const { diffusion, condition } = model.recipe;
  let denoise = denoiserOf((x, t, labels) => run(model, x, t, labels, pause), diffusion);
  if (condition) denoise = guided(denoise, scale);
  return model.vae ? denoise : clipped(denoise, SCHEDULES[diffusion.schedule]); // latents have no range
}

/** Every state on the way to `count` pictures. asked: {count, labels, scale, sampler, steps, eta, seed}. */
function states(model, { count, labels, scale, sampler, steps, eta, seed }, pause) {
  const { network, diffusion } = model.recipe, generators = sampleGenerators(seed, count);
  const x = randn(generators, network.in_channels * network.image_size ** 2);
  const schedule = SCHEDULES[diffusion.schedule], times = timeGrid(steps, diffusion.timesteps);
  return sample(denoiser(model, scale, pause), x, times, sampler, { schedule, generators, eta, labels });
}

/** What the network works on, as pictures (b, 28, 28) in [-1, 1]. */
function toImages(model, x) {
  return crop(model.vae ? decode(model.vae, x) : x);
}

function crop(images) {
  const side = 28, whole = side + 2 * PADDING, b = images.length / whole ** 2, cut = new Float32Array(b * side ** 2);
  let i = 0;
  for (let k = 0; k < b; k++) for (let r = 0; r < side; r++) for (let q = 0; q < side; q++)
    cut[i++] = clamp(images[(k * whole + r + PADDING) * whole + q + PADDING], -1, 1);
  return cut;
}
