// A model end to end: noise in, pictures out. diffusion_book/pipelines.py once more.

const AT_ONCE = 2048; // positions that the network works on at once: more would not be faster, and need more memory
const PADDING = 2; // pixels around a digit of 28 x 28
const FIRST = 0.01; // time at which the way from a picture to its noise begins: see chapter 2, section 10

/** The network's output for a batch, part by part; `pause` is awaited between them, and may stop it by an error.
 *
 * maps: as for `unet`; where it is given, the whole batch is one part.
 */
async function run(model, x, t, labels, pause, maps) {
  const { in_channels: channels, image_size: side, patch_size: p } = model.recipe.network;
  const size = channels * side * side, b = x.length / size, part = maps ? b : Math.max(1, Math.floor(AT_ONCE / (side / p) ** 2));
  const output = new Float32Array(x.length);
  for (let begin = 0; begin < b; begin += part) {
    const end = Math.min(b, begin + part);
    await pause();
    const times = new Array(end - begin).fill(t);
    output.set(unet(model, x.subarray(begin * size, end * size), times, labels?.slice(begin, end), maps), begin * size);
  }
  return output;
}

/** (x_t, t, labels) -> {x0, eps}, of the network alone; maps: as for `run`. */
function rawDenoiser(model, pause, maps) {
  return denoiserOf((x, t, labels) => run(model, x, t, labels, pause, maps), model.recipe.diffusion);
}

/** The same, guided and clipped as the library's pipeline does it. */
function denoiser(model, scale, pause, maps) {
  const { diffusion, condition } = model.recipe;
  let denoise = rawDenoiser(model, pause, maps);
  if (condition) denoise = guided(denoise, scale);
  return model.vae ? denoise : clipped(denoise, SCHEDULES[diffusion.schedule]); // latents have no range
}

/** Every state on the way to `count` pictures.
 *
 * wish: {task, count, labels, scale, sampler, steps, eta, seed}, and `until`, a time to stop at. The tasks "sample" and
 * "watch" begin from noise; "watch" shows what is predicted at the time `until`, and its states have the `maps` of that
 * prediction, layer -> (count, positions, tokens). All others begin from a drawing, and know its `ink` and `holes` too
 * (see paper.js); "sdedit" and "change" go to time t, and "change" from the class `from`.
 */
async function* states(model, wish, pause) {
  const { count, labels, scale, sampler, steps, eta, seed } = wish;
  if (wish.task === "classify" || wish.task === "reconstruct") {
    const picture = drawn(wish.ink);
    yield { t: 0, x: wish.task === "classify" ? picture : encode(model, picture), prediction: null };
    return;
  }
  const { network, diffusion } = model.recipe, begun = wish.task === "invert" ? 1 : count;
  const generators = sampleGenerators(seed, begun), schedule = SCHEDULES[diffusion.schedule];
  const times = timeGrid(steps, diffusion.timesteps);
  const maps = wish.task === "watch" ? {} : undefined;
  const denoise = denoiser(model, scale, pause, maps), rest = { schedule, generators, eta, labels };
  if (wish.task === "sample" || wish.task === "watch") {
    const noise = randn(generators, network.in_channels * network.image_size ** 2), until = wish.until ?? 0;
    let t = 1; // when a prediction was made: where its step began
    for await (const state of sample(denoise, noise, times, sampler, rest)) {
      if (maps && state.prediction) yield { t, x: state.prediction.x0, prediction: null, maps: ofLast(count, maps) };
      if (!maps) yield state;
      if (maps ? state.prediction && t <= until : state.t <= until) return;
      t = state.t;
    }
    return;
  }
  const picture = drawn(wish.ink), x0 = repeat(model.vae ? encode(model.vae, picture) : picture, begun);
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
  if (wish.task === "invert") { // its noise, a third as strong so that it can be seen, and what comes back from it
    const raw = rawDenoiser(model, pause), up = [...times.filter(time => time > FIRST), FIRST];
    const [alpha, sigma] = schedule(FIRST), begin = mix(alpha, x0, sigma, randn(generators, x0.length));
    let code;
    for await (const state of invert(raw, begin, up, "euler", { schedule })) code = state.x;
    const beside = x => Float32Array.of(...code.map(value => value / 3), ...x);
    for await (const { t, x, prediction } of sample(raw, code, [...up, 0], "euler", { schedule, generators }))
      yield { t, x: beside(x), prediction: prediction && { x0: beside(prediction.x0) } };
  }
}

/** Of maps of a whole batch those of the last `count` pictures: with guidance, those that are told their classes. */
function ofLast(count, maps) {
  const last = {};
  for (const [key, { weights, b }] of Object.entries(maps)) last[key] = weights.slice(-weights.length / b * count);
  return last;
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
