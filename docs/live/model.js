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

/** Every state on the way to `count` pictures.
 *
 * wish: {task, count, labels, scale, sampler, steps, eta, seed}, and `until`, a time to stop at. Every task but "sample" begins from a drawing, and
 * knows its `ink` and `holes` too (see paper.js); "sdedit" and "change" go to time t, and "change" from the class `from`.
 */
async function* states(model, wish, pause) {
  const { count, labels, scale, sampler, steps, eta, seed } = wish;
  if (wish.task === "reconstruct") {
    yield { t: 0, x: encode(model, drawn(wish.ink)), prediction: null };
    return;
  }
  const { network, diffusion } = model.recipe, generators = sampleGenerators(seed, count);
  const schedule = SCHEDULES[diffusion.schedule], times = timeGrid(steps, diffusion.timesteps);
  const denoise = denoiser(model, scale, pause), rest = { schedule, generators, eta, labels };
  if (wish.task === "sample") {
    const noise = randn(generators, network.in_channels * network.image_size ** 2);
    for await (const state of sample(denoise, noise, times, sampler, rest)) {
      yield state;
      if (state.t <= (wish.until ?? 0)) return;
    }
  }
  const picture = drawn(wish.ink), x0 = repeat(model.vae ? encode(model.vae, picture) : picture, count);
  if (wish.task === "sdedit") yield* sdedit(denoise, x0, wish.t, times, sampler, rest);
  if (wish.task === "inpaint") {
    const known = repeat(padded(wish.holes.map(hole => 1 - hole), 1), count);
    yield* inpaint(denoise, x0, known, times, sampler, rest);
  }
  if (wish.task === "change") {
    const way = timesFrom(wish.t, times), was = { schedule, labels: labels.map(() => wish.from) };
    let x;
    for await (const state of invert(denoiser(model, 1, pause), x0, way, sampler, was)) x = state.x;
    yield* sample(denoise, x, way, sampler, rest);
  }
}

/** What the network works on, as pictures (b, 28, 28) in [-1, 1]. */
function toImages(model, x) {
  const vae = model.recipe.vae ? model : model.vae;
  return crop(vae ? decode(vae, x) : x);
}

/** The same again, `count` times. */
function repeat(x, count) {
  const all = new Float32Array(x.length * count);
  for (let k = 0; k < count; k++) all.set(x, k * x.length);
  return all;
}

/** A drawing of 28 x 28, 0 to 1, as a picture of 32 x 32, -1 to 1. */
const drawn = ink => padded(ink.map(value => 2 * value - 1), -1);

/** 28 x 28 numbers with a border around them: 32 x 32. */
function padded(x, border) {
  const side = 28, whole = side + 2 * PADDING, y = new Float32Array(whole ** 2).fill(border);
  for (let r = 0; r < side; r++) y.set(x.subarray(r * side, (r + 1) * side), (r + PADDING) * whole + PADDING);
  return y;
}

function crop(images) {
  const side = 28, whole = side + 2 * PADDING, b = images.length / whole ** 2, cut = new Float32Array(b * side ** 2);
  let i = 0;
  for (let k = 0; k < b; k++) for (let r = 0; r < side; r++) for (let q = 0; q < side; q++)
    cut[i++] = clamp(images[(k * whole + r + PADDING) * whole + q + PADDING], -1, 1);
  return cut;
}
