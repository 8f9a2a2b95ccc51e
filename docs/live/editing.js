// What else a denoiser can do: diffusion_book/editing.py once more. Each yields states as `sample` does.

/** The rest of a time grid: t itself, then all of its times that are less noisy. */
const timesFrom = (t, times) => [t, ...times.filter(time => time < t)];

/** Noise a picture to time t, and bring it back. Source: Meng et al. 2021 (SDEdit), algorithm 1. */
async function* sdedit(denoiser, x0, t, times, sampler, { schedule, generators, eta, labels }) {
  const [alpha, sigma] = schedule(t), noise = randn(generators, x0.length / generators.length);
  const x = mix(alpha, x0, sigma, noise);
  yield* sample(denoiser, x, timesFrom(t, times), sampler, { schedule, generators, eta, labels });
}

/** Draw what is missing of a picture: known is 1 where it is to be kept, else 0.
 *
 * Source: Lugmayr et al. 2022 (RePaint), algorithm 1, with jumps of one step.
 */
async function* inpaint(denoiser, x0, known, times, sampler, { schedule, generators, eta, labels, resamplings = 5 }) {
  const step = SAMPLERS[sampler], ask = (x, t) => denoiser(x, t, labels);
  const draw = () => randn(generators, x0.length / generators.length);
  let x = draw();
  yield { t: times[0], x, prediction: null };
  for (let k = 0; k + 1 < times.length; k++) {
    const t = times[k], s = times[k + 1], [alphaT, sigmaT] = schedule(t), [alphaS, sigmaS] = schedule(s);
    let prediction;
    for (let again = resamplings - 1; again >= 0; again--) {
      prediction = await ask(x, t);
      const drawn = await step(prediction, x, t, s, { schedule, noise: draw(), eta, ask });
      const kept = mix(alphaS, x0, sigmaS, draw());
      x = drawn.map((value, i) => known[i] > 0 ? kept[i] : value);
      if (s === 0) break; // where nothing is drawn any more
      if (again > 0) { // back to time t, by a draw of q(x_t | x_s)
        const alpha = alphaT / alphaS, variance = Math.max(0, sigmaT ** 2 - alpha ** 2 * sigmaS ** 2);
        x = mix(alpha, x, Math.sqrt(variance), draw());
      }
    }
    yield { t: s, x, prediction };
  }
}

/** The noise that a deterministic sampler would turn into this picture. Source: Song et al. 2020 (DDIM), section 5.4. */
function invert(denoiser, x0, times, sampler, { schedule, labels }) {
  return sample(denoiser, x0, [...times].reverse(), sampler, { schedule, generators: [], labels });
}
