// Diffusion: schedules.py, targets.py, denoiser.py, guidance.py and samplers.py of the library once more.
// t runs from 0, data, to 1, noise, and x_t = alpha x_0 + sigma eps. Pictures are arrays of numbers, (b, ...) flat;
// all pictures of a batch are at the same time.

/** a x + b y (+ c z), number by number. */
function mix(a, x, b, y, c = 0, z = x) {
  const sum = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) sum[i] = a * x[i] + b * y[i] + c * z[i];
  return sum;
}

// Schedules: t -> [alpha, sigma]

const TIMESTEPS = 1000;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** Source: Nichol & Dhariwal 2021, equation 17, with the floor that their cap on beta leaves at t = 1. */
function cosine(t, offset = 0.008) {
  const angle = time => (time + offset) / (1 + offset) * (Math.PI / 2), start = angle(0);
  const floor = Math.sqrt(1e-3) * Math.cos(angle(1 - 1 / TIMESTEPS)) / Math.cos(start);
  const alpha = Math.max(floor, Math.cos(angle(t)) / Math.cos(start));
  const variance = Math.sin(t / (1 + offset) * (Math.PI / 2)) * Math.sin(angle(t) + start) / Math.cos(start) ** 2;
  return [alpha, Math.sqrt(clamp(variance, 0, 1 - floor ** 2))];
}

/** Source: Ho et al. 2020, section 4; between the 1,000 steps log alpha-bar is interpolated. */
function linearBetas(t, first = 1e-4, last = 0.02) {
  const position = clamp(t, 0, 1) * TIMESTEPS, below = Math.min(Math.floor(position), TIMESTEPS - 1);
  let log = 0; // of alpha-bar
  for (let k = 0; k <= below; k++) {
    const share = k < below ? 1 : position - below;
    log += share * Math.log1p(-(first + (last - first) * k / (TIMESTEPS - 1)));
  }
  return [Math.exp(log / 2), Math.sqrt(-Math.expm1(log))];
}

/** Source: Liu, Gong & Liu 2022, equation 1 (there time runs the other way). */
const rectified = t => [1 - t, t];

const SCHEDULES = { cosine, linear: linearBetas, rectified };

/** One step back, if the clean picture were known: q(x_s | x_t, x_0) = N(a x_t + b x_0, variance) -> [a, b, variance].
 *
 * Source: Ho et al. 2020, equations 6 and 7, for any two times s < t.
 */
function posterior(schedule, t, s) {
  const [alphaT, sigmaT] = schedule(t), [alphaS, sigmaS] = schedule(s), alpha = alphaT / alphaS;
  const variance = Math.max(0, sigmaT ** 2 - alpha ** 2 * sigmaS ** 2); // of q(x_t | x_s)
  return [alpha * sigmaS ** 2 / sigmaT ** 2, alphaS * variance / sigmaT ** 2, sigmaS ** 2 * variance / sigmaT ** 2];
}

// Targets: what the network predicts, a x0 + b eps, as (alpha, sigma) -> [a, b]

const TARGETS = {
  noise: () => [0, 1],
  image: () => [1, 0],
  v: (alpha, sigma) => [-sigma, alpha],
  velocity: () => [-1, 1],
};

// Denoisers: (x_t, t, labels) -> a promise of {x0, eps}

/** network: (x, t, labels) -> a promise of its output. */
function denoiserOf(network, { schedule, target }) {
  return async (x, t, labels) => {
    const [alpha, sigma] = SCHEDULES[schedule](t), [a, b] = TARGETS[target](alpha, sigma), d = alpha * b - sigma * a;
    const output = await network(x, t, labels);
    return { x0: mix(b / d, x, -sigma / d, output), eps: mix(alpha / d, output, -a / d, x) };
  };
}

/** eps = eps_u + w (eps_c - eps_u), and the same for x0; both branches in one batch.
 *
 * Source: Ho & Salimans 2022, equation 6; w = 1 is the plain conditional model, w = 0 the unconditional one.
 */
function guided(denoiser, w) {
  return async (x, t, labels) => {
    const nothing = labels.map(() => -1);
    if (w === 1) return denoiser(x, t, labels);
    if (w === 0) return denoiser(x, t, nothing);
    const twice = new Float32Array(2 * x.length);
    twice.set(x), twice.set(x, x.length);
    const both = await denoiser(twice, t, [...nothing, ...labels]);
    const lerp = pair => mix(1 - w, pair.subarray(0, x.length), w, pair.subarray(x.length));
    return { x0: lerp(both.x0), eps: lerp(both.eps) };
  };
}

/** x0 kept inside [-1, 1], the range of pictures, and eps made to agree with it. */
function clipped(denoiser, schedule) {
  return async (x, t, labels) => {
    const x0 = (await denoiser(x, t, labels)).x0.map(value => clamp(value, -1, 1)), [alpha, sigma] = schedule(t);
    return { x0, eps: mix(1 / Math.max(sigma, 1e-38), x, -alpha / Math.max(sigma, 1e-38), x0) };
  };
}

// Steps: (prediction, x_t, t, s, {schedule, noise, eta, ask, before}) -> x_s. See diffusion_book/samplers.py.

/** Source: Ho et al. 2020, algorithm 2. */
function ddpm({ x0 }, x, t, s, { schedule, noise }) {
  const [a, b, variance] = posterior(schedule, t, s);
  return mix(a, x, b, x0, Math.sqrt(variance), noise);
}

/** Source: Song et al. 2020 (DDIM), equations 12 and 16. */
function ddim({ x0, eps }, x, t, s, { schedule, noise, eta = 0 }) {
  const [alpha, sigma] = schedule(s), fresh = eta * Math.sqrt(posterior(schedule, t, s)[2]);
  return mix(alpha, x0, Math.sqrt(Math.max(0, sigma ** 2 - fresh ** 2)), eps, fresh, noise);
}

/** Source: Liu, Gong & Liu 2022, section 2.1. */
function euler({ x0, eps }, x, t, s, { schedule }) {
  const [alphaT, sigmaT] = schedule(t), [alphaS, sigmaS] = schedule(s);
  return mix(1, x, alphaS - alphaT, x0, sigmaS - sigmaT, eps);
}

/** Source: Runge 1895. */
async function midpoint(prediction, x, t, s, { schedule, ask }) {
  const middle = (t + s) / 2;
  return euler(await ask(euler(prediction, x, t, middle, { schedule }), middle), x, t, s, { schedule });
}

/** Source: Karras et al. 2022, algorithm 1 (without its churn). */
async function heun(prediction, x, t, s, { schedule, ask }) {
  const there = euler(prediction, x, t, s, { schedule });
  if (s === 0) return there;
  const end = await ask(there, s);
  const mean = { x0: mix(0.5, prediction.x0, 0.5, end.x0), eps: mix(0.5, prediction.eps, 0.5, end.eps) };
  return euler(mean, x, t, s, { schedule });
}

/** Source: Lu et al. 2022 (DPM-Solver++), algorithm 2. */
function dpmPlusPlus({ x0 }, x, t, s, { schedule, before }) {
  const [alphaT, sigmaT] = schedule(t), [alphaS, sigmaS] = schedule(s), kept = sigmaS / sigmaT;
  if (before && s > 0) {
    const lambda = time => Math.log(schedule(time)[0]) - Math.log(schedule(time)[1]);
    const extend = (lambda(s) - lambda(t)) / (lambda(t) - lambda(before.t)) / 2;
    x0 = mix(1 + extend, x0, -extend, before.x0);
  }
  return mix(kept, x, alphaS - alphaT * kept, x0);
}

const SAMPLERS = { ddpm, ddim, euler, midpoint, heun, "dpm++": dpmPlusPlus };

/** The times that a sampler visits, steps + 1 of them from 1 down to 0, on the training's grid. */
function timeGrid(steps, timesteps = TIMESTEPS) {
  const apart = timesteps / steps;
  return Array.from({ length: steps + 1 }, (_, i) => {
    const place = 2 * i < steps + 1 ? timesteps - i * apart : (steps - i) * apart; // from the nearer end, as torch does
    const below = Math.floor(place), half = place - below === 0.5; // a half goes to its even neighbour
    return (half ? below + below % 2 : Math.round(place)) / timesteps;
  });
}

/** Walk from noise to picture, and yield every state on the way, {t, x, prediction}, the noise first. */
async function* sample(denoiser, x, times, sampler, { schedule, generators, eta = 0, labels }) {
  const step = SAMPLERS[sampler], ask = (x, t) => denoiser(x, t, labels);
  const draws = sampler === "ddpm" || sampler === "ddim" && eta > 0;
  let before = null;
  yield { t: times[0], x, prediction: null };
  for (let k = 0; k + 1 < times.length; k++) {
    const t = times[k], s = times[k + 1], prediction = await ask(x, t);
    const noise = draws && s > 0 ? randn(generators, x.length / generators.length) : new Float32Array(x.length);
    x = await step(prediction, x, t, s, { schedule, noise, eta, ask, before });
    before = { t, x0: prediction.x0 };
    yield { t: s, x, prediction };
  }
}
