// Diffusion and flows in the plane: data, schedules, targets, the loss, guidance, the walk back, reflow.
//
// Points lie one behind the other, x and y, in one array. Names and equations are those of the library's modules
// `schedules`, `targets`, `objective`, `guidance` and `samplers`.

const LIMIT = 3; // the plane goes from -LIMIT to LIMIT
const CLASSES = 3, NONE = -1; // at most so many classes; NONE: none is told
const WAVES = 4; // of the time, as the network reads it
const WIDTHS = [6 + WAVES + CLASSES, 48, 48, 48, 2];
const LAYERS = layersOf(WIDTHS);
const BATCH = 128, RATE = 0.01;
const UNTOLD = 0.5; // share of a batch that is not told its class: the picture shows both fields equally often

/** Uniform numbers in [0, 1): a counter, stirred. Source: Steele et al. 2014, in 32 bits. */
function randomFrom(seed) {
  return () => {
    seed = seed + 0x6d2b79f5 | 0;
    let z = Math.imul(seed ^ seed >>> 15, seed | 1);
    z ^= z + Math.imul(z ^ z >>> 7, z | 61);
    return ((z ^ z >>> 14) >>> 0) / 2 ** 32;
  };
}

/** Standard normal numbers. Source: Box & Muller 1958. */
function normals(random, size) {
  return Float64Array.from({ length: size }, () =>
    Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random()));
}

// Data: (random) -> {points, labels}

const COUNT = 600;
const SETS = {
  moons: (random, i) => {
    const label = i % 2, angle = Math.PI * random(), side = label ? -1 : 1;
    return [side * (1.4 * Math.cos(angle) - 0.7), side * (1.4 * Math.sin(angle) - 0.35), 0.09, label];
  },
  ring: (random, i) => {
    const label = i % 2, angle = Math.PI * (random() + label);
    return [1.7 * Math.cos(angle), 1.7 * Math.sin(angle), 0.08, label];
  },
  mixture: (random, i) => {
    const label = i % 3, angle = 2 * Math.PI * (label / 3 + 1 / 4);
    return [1.1 * Math.cos(angle), 1.1 * Math.sin(angle), 0.45, label];
  },
};

/** One of the sets: each draws a middle, the standard deviation around it, and the class. */
function dataOf(name, random) {
  const points = [], labels = [];
  for (let i = 0; name in SETS && i < COUNT; i++) {
    const [x, y, spread, label] = SETS[name](random, i), [dx, dy] = normals(random, 2);
    points.push(x + spread * dx, y + spread * dy), labels.push(label);
  }
  return { points, labels };
}

// Schedules, t -> [alpha, sigma], and targets, (alpha, sigma) -> [a, b] of a x0 + b eps

const cosine = t => {
  const floor = Math.sqrt(1e-3) * Math.cos((1.007 / 1.008) * Math.PI / 2);
  const alpha = Math.max(floor, Math.cos((t + 0.008) / 1.008 * Math.PI / 2) / Math.cos(0.008 / 1.008 * Math.PI / 2));
  return [alpha, Math.sqrt(Math.max(0, 1 - alpha ** 2))];
};
const rectified = t => [1 - t, t];

const TARGETS = {
  noise: { schedule: cosine, pair: () => [0, 1] },
  image: { schedule: cosine, pair: () => [1, 0] },
  v: { schedule: cosine, pair: (alpha, sigma) => [-sigma, alpha] },
  velocity: { schedule: rectified, pair: () => [-1, 1] },
};

/** What the network reads of points, their times and classes: x, y, cos(pi k t) for k = 1 ... 4, the class as one of 3. */
function features(x, t, labels) {
  const count = labels.length, wide = WIDTHS[0], read = new Float64Array(count * wide);
  for (let n = 0; n < count; n++) {
    const at = n * wide, time = t.length ? t[n] : t;
    for (let axis = 0; axis < 2; axis++) {
      const value = x[2 * n + axis];
      read[at + axis] = value, read[at + 2 + axis] = Math.sin(2 * value), read[at + 4 + axis] = Math.cos(2 * value);
    }
    for (let k = 1; k <= WAVES; k++) read[at + 5 + k] = Math.cos(Math.PI * k * time);
    if (labels[n] !== NONE) read[at + 6 + WAVES + labels[n]] = 1;
  }
  return read;
}

/** Points, noises, times and classes to learn from: one time in each of equal slices of (0, 1], as objective.uniform.
 *
 * pairs: {points, labels}, and in reflow the noise that belongs to each point. Without it noise is drawn.
 */
function batchOf({ points, labels, noise }, random) {
  const x0 = new Float64Array(2 * BATCH), eps = normals(random, 2 * BATCH), told = new Int8Array(BATCH);
  for (let n = 0; n < BATCH; n++) {
    const i = Math.floor(random() * labels.length);
    x0[2 * n] = points[2 * i], x0[2 * n + 1] = points[2 * i + 1];
    if (noise) eps[2 * n] = noise[2 * i], eps[2 * n + 1] = noise[2 * i + 1];
    told[n] = noise || random() >= UNTOLD ? labels[i] : NONE; // made pairs keep what the flow was told
  }
  return { x0, eps, t: Float64Array.from({ length: BATCH }, (_, n) => 1 - (n + random()) / BATCH), labels: told };
}

/** The loss of a batch and its gradient. Source: Ho et al. 2020, equation 14; Liu, Gong & Liu 2022, equation 1. */
function lossAndGradient(parameters, target, { x0, eps, t, labels }) {
  const { schedule, pair } = TARGETS[target], count = labels.length, wanted = new Float64Array(2 * count);
  const x = wanted.map((_, i) => {
    const [alpha, sigma] = schedule(t[i >> 1]), [a, b] = pair(alpha, sigma);
    wanted[i] = a * x0[i] + b * eps[i];
    return alpha * x0[i] + sigma * eps[i];
  });
  const kept = [], output = forward(LAYERS, parameters, features(x, t, labels), count, kept);
  let loss = 0;
  const gradient = output.map((value, i) => {
    loss += (value - wanted[i]) ** 2 / wanted.length;
    return 2 * (value - wanted[i]) / wanted.length;
  });
  return { loss, gradient: backward(LAYERS, parameters, kept, gradient, count) };
}

/** Clean point and noise in each of some points x_t: {x0, eps}, by the two equations of diffusion_book/targets.py.
 *
 * guidance_scale w: eps_u + w (eps_c - eps_u). Source: Ho & Salimans 2022, equation 6. Diffusion keeps x0 in the plane,
 * for close to t = 1 it is the quotient of two small numbers.
 */
function predict({ parameters, target }, x, t, labels, scale = 1) {
  const { schedule, pair } = TARGETS[target], [alpha, sigma] = schedule(t), [a, b] = pair(alpha, sigma);
  const ask = told => forward(LAYERS, parameters, features(x, t, told), told.length);
  let output = ask(scale === 0 ? labels.map(() => NONE) : labels);
  if (scale !== 0 && scale !== 1 && labels.some(label => label !== NONE)) {
    const told = output;
    output = ask(labels.map(() => NONE)).map((nothing, i) => nothing + scale * (told[i] - nothing));
  }
  const d = alpha * b - sigma * a, clip = schedule === cosine ? LIMIT : Infinity;
  const x0 = output.map((value, i) => Math.min(clip, Math.max(-clip, (b * x[i] - sigma * value) / d)));
  return { x0, eps: x0.map((value, i) => (sigma ? (x[i] - alpha * value) / sigma : 0)) };
}

/** A step from t to s along the differential equation dx = x0 dalpha + eps dsigma: `ddim`, which on the straight path is
 * Euler's. Source: Song et al. 2020 (DDIM), equation 13; Liu, Gong & Liu 2022, section 2.1.
 */
function step(model, x, t, s, labels, scale) {
  const { schedule } = TARGETS[model.target], [alphaT, sigmaT] = schedule(t), [alphaS, sigmaS] = schedule(s);
  const { x0, eps } = predict(model, x, t, labels, scale);
  return x.map((value, i) => value + (alphaS - alphaT) * x0[i] + (sigmaS - sigmaT) * eps[i]);
}

/** The way of points from noise, as a generator that is asked for one piece of work at a time: so the page can paint, or
 * stop, in between. It ends with the states at the times 1, ... 0, as many arrays.
 */
function* walk(model, noise, labels, steps, scale, piece = 64) {
  const states = [Float64Array.from(noise)];
  for (let k = 0; k < steps; k++) {
    const t = 1 - k / steps, s = 1 - (k + 1) / steps, next = new Float64Array(noise.length);
    for (let n = 0; n < labels.length; n += piece) {
      const some = labels.slice(n, n + piece);
      next.set(step(model, states[k].slice(2 * n, 2 * (n + piece)), t, s, some, scale), 2 * n);
      yield;
    }
    states.push(next);
  }
  return states;
}

/** How far ways are from straight ones at constant speed: the squared distance of the velocity from the chord, over the
 * squared length of the chord. 0: one step is enough. Source: Liu, Gong & Liu 2022, section 2.2.
 */
function straightness(states) {
  const first = states[0], last = states.at(-1), steps = states.length - 1;
  let off = 0, length = 0;
  for (let i = 0; i < first.length; i++) {
    const chord = first[i] - last[i];
    length += chord ** 2;
    for (let k = 0; k < steps; k++) off += (steps * (states[k][i] - states[k + 1][i]) - chord) ** 2 / steps;
  }
  return off / length;
}

/** Pairs of noise and the point that the model makes of it, to learn from once more: again a generator of pieces.
 * Half of them are told no class. Source: Liu, Gong & Liu 2022, section 2.2.
 */
function* pairsOf(model, { labels }, random, count = 2048, steps = 30) {
  const noise = normals(random, 2 * count);
  const told = Int8Array.from({ length: count }, () =>
    random() < UNTOLD ? NONE : labels[Math.floor(random() * labels.length)]);
  const states = yield* walk(model, noise, told, steps, 1);
  return { points: states.at(-1), labels: told, noise };
}
