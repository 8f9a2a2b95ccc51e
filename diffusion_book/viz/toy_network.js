// A small fully connected network and AdamW, as PyTorch has them: see diffusion_book/networks/mlp.py.
//
// All parameters lie in one array, so that an optimiser, or an average over the training, is one loop. A layer takes
// `outputs x inputs` numbers of weight and then `outputs` of bias. Everything is in double precision, the only one that
// JavaScript computes in.

/** Where each layer's weight and bias begin, for widths such as [10, 64, 64, 2]. */
function layersOf(widths) {
  let begin = 0;
  return widths.slice(1).map((outputs, k) => {
    const inputs = widths[k], weight = begin, bias = weight + outputs * inputs;
    begin = bias + outputs;
    return { inputs, outputs, weight, bias, end: begin };
  });
}

/** New parameters: uniform in +- 1 / sqrt(inputs), as torch.nn.Linear begins. random: () -> a number in [0, 1). */
function newParameters(layers, random) {
  const parameters = new Float64Array(layers.at(-1).end);
  for (const { inputs, weight, end } of layers)
    for (let i = weight; i < end; i++) parameters[i] = (2 * random() - 1) / Math.sqrt(inputs);
  return parameters;
}

/** The network's output for `count` inputs that lie one behind the other.
 *
 * kept: a list that gets what `backward` needs, a layer's input and the slope of the SiLU behind it.
 */
function forward(layers, parameters, input, count, kept = null) {
  layers.forEach((layer, k) => {
    const output = linear(layer, parameters, input, count), last = k === layers.length - 1;
    const slope = last || !kept ? null : new Float64Array(output.length);
    kept?.push({ input, slope });
    if (!last) silu(output, slope);
    input = output;
  });
  return input;
}

/** input W^T + b. Four outputs at a time: each waits for its own last sum only. */
function linear({ inputs, outputs, weight, bias }, parameters, input, count) {
  const output = new Float64Array(count * outputs), whole = outputs - outputs % 4;
  for (let n = 0; n < count; n++) {
    const from = n * inputs, to = n * outputs;
    for (let o = 0; o < whole; o += 4) {
      let a = parameters[bias + o], b = parameters[bias + o + 1], c = parameters[bias + o + 2];
      let d = parameters[bias + o + 3], w = weight + o * inputs;
      for (let i = 0; i < inputs; i++, w++) {
        const x = input[from + i];
        a += x * parameters[w], b += x * parameters[w + inputs];
        c += x * parameters[w + 2 * inputs], d += x * parameters[w + 3 * inputs];
      }
      output[to + o] = a, output[to + o + 1] = b, output[to + o + 2] = c, output[to + o + 3] = d;
    }
    for (let o = whole; o < outputs; o++) {
      let a = parameters[bias + o];
      for (let i = 0, w = weight + o * inputs; i < inputs; i++, w++) a += input[from + i] * parameters[w];
      output[to + o] = a;
    }
  }
  return output;
}

/** z sigmoid(z), in place; slope: gets its derivative. Source: Elfwing et al. 2018. */
function silu(z, slope) {
  for (let i = 0; i < z.length; i++) {
    const gate = 1 / (1 + Math.exp(-z[i]));
    if (slope) slope[i] = gate * (1 + z[i] * (1 - gate));
    z[i] *= gate;
  }
}

/** The gradient of a loss in all parameters, from its gradient in the network's output. */
function backward(layers, parameters, kept, gradient, count) {
  const all = new Float64Array(parameters.length);
  for (let k = layers.length - 1; k >= 0; k--) {
    const { inputs, outputs, weight, bias } = layers[k], { input } = kept[k];
    for (let n = 0; n < count; n++) for (let o = 0; o < outputs; o++) all[bias + o] += gradient[n * outputs + o];
    for (let o = 0; o < outputs; o++) for (let n = 0; n < count; n += 4)
      addFour(all, weight + o * inputs, inputs, gradient, n * outputs + o, outputs, input, n * inputs, count - n);
    if (!k) break;
    const below = new Float64Array(count * inputs), { slope } = kept[k - 1];
    for (let n = 0; n < count; n++) for (let o = 0; o < outputs; o += 4)
      addFour(below, n * inputs, inputs, gradient, n * outputs + o, 1, parameters, weight + o * inputs, outputs - o);
    gradient = below.map((value, i) => value * slope[i]);
  }
  return all;
}

/** Adds to a row the sum of up to four rows, each times a factor: a sum is read and written once for all of them.
 *
 * The factors lie `apart`, the rows one behind the other; `left` of both are there.
 */
function addFour(to, at, length, factors, factor, apart, rows, row, left) {
  const second = left > 1, third = left > 2, fourth = left > 3;
  const a = factors[factor], b = second ? factors[factor + apart] : 0;
  const c = third ? factors[factor + 2 * apart] : 0, d = fourth ? factors[factor + 3 * apart] : 0;
  const q = second ? row + length : row, r = third ? row + 2 * length : row, s = fourth ? row + 3 * length : row;
  for (let i = 0; i < length; i++)
    to[at + i] += a * rows[row + i] + b * rows[q + i] + c * rows[r + i] + d * rows[s + i];
}

/** AdamW with PyTorch's constants: a function that moves the parameters along a gradient.
 *
 * Source: Loshchilov & Hutter 2019, algorithm 2.
 */
function adamW(parameters, { beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.01 } = {}) {
  const mean = new Float64Array(parameters.length), square = new Float64Array(parameters.length);
  let step = 0;
  return (gradient, rate) => {
    step += 1;
    const size = rate / (1 - beta1 ** step), unbiased = Math.sqrt(1 - beta2 ** step);
    for (let i = 0; i < parameters.length; i++) {
      const g = gradient[i];
      mean[i] += (1 - beta1) * (g - mean[i]);
      square[i] += (1 - beta2) * (g * g - square[i]);
      parameters[i] -= rate * decay * parameters[i] + size * mean[i] / (Math.sqrt(square[i]) / unbiased + eps);
    }
  };
}

/** A mean of the parameters over the training, with a warm-up: diffusion_book/training/ema.py. */
function follow(average, parameters, step, longest = 0.99) {
  const keep = Math.min(longest, (1 + step) / (10 + step));
  for (let i = 0; i < average.length; i++) average[i] = keep * average[i] + (1 - keep) * parameters[i];
}
