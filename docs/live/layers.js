// The parts that the networks are made of: diffusion_book/networks/layers.py once more.
//
// All numbers lie in one memory, F. A picture is {at, b, h, w, c}: b pictures of h lines, w columns and c channels,
// from F[at] on, pixel by pixel with the channels of a pixel side by side. `border` says that a border of zeros, one
// pixel wide, lies around each, which is what a 3 x 3 convolution wants to read.
//
// Nothing is ever freed one by one. New numbers are put at `free`, and a caller that is done sets it back.

const HEAD = 32; // channels of a head of attention
let memory, F, I; // the memory, and its numbers: as float32, and as the addresses that `product` reads
let kernels; // product, sums, affine, softmax
let free; // the first number that is free
let zeros; // where 8,192 zeros lie: a bias for products that have none, a mean for sums that need none

/** Begin with an empty memory. binaries: kernels.wat assembled, base64, the fastest first; none: plain JavaScript. */
function begin(binaries) {
  for (const binary of binaries) {
    try {
      const pages = new WebAssembly.Memory({ initial: 256 }); // of 64 KB
      const instance = new WebAssembly.Instance(new WebAssembly.Module(bytes(binary)), { live: { memory: pages } });
      memory = pages, kernels = instance.exports;
      break;
    } catch { /* This browser has no WebAssembly, or not all of its instructions: the next one needs fewer. */ }
  }
  memory ||= { buffer: new ArrayBuffer(1 << 24) };
  look();
  free = 4; // the address 0 stands for "nothing"
  zeros = allocate(8192);
  F.fill(0, zeros, zeros + 8192);
}

/** Look at the memory anew: when it grows, its old views go blind. */
function look() {
  F = new Float32Array(memory.buffer), I = new Int32Array(memory.buffer);
  if (!memory.grow) kernels = plainKernels(F, I);
}

/** Room for n numbers; where it lies. */
function allocate(n) {
  const at = free;
  free += up(n, 4);
  const missing = 4 * free - F.byteLength;
  if (missing > 0) {
    if (memory.grow) memory.grow(up(missing, 1 << 22) >> 16);
    else {
      const larger = new ArrayBuffer(up(4 * free, 1 << 24));
      new Float32Array(larger).set(F);
      memory = { buffer: larger };
    }
    look();
  }
  return at;
}

const up = (n, to) => Math.ceil(n / to) * to; // to the next multiple
const picture = (b, h, w, c) => ({ at: allocate(up(b * h * w, 4) * c), b, h, w, c });

function bordered(b, h, w, c) {
  const size = b * (h + 2) * (w + 2) * c, at = allocate(size);
  F.fill(0, at, at + size);
  return { at, b, h, w, c, border: 1 };
}

/** Forget all that was made since `mark`, but for the picture x, which moves there. */
function keep(mark, x) {
  const size = up(x.b * x.h * x.w, 4) * x.c;
  F.copyWithin(mark, x.at, x.at + size);
  free = mark + size;
  return { ...x, at: mark };
}

// Weights

const HALF = Float32Array.from({ length: 65536 }, (_, bits) => { // what each float16 stands for
  const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits >> 15 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
});

function bytes(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  return Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
}

/** Read a model's tensors: {name: [where it begins, shape]} and the numbers, float16, base64.
 *
 * A convolution (out, in, 3, 3) becomes a matrix (3 * 3 * in, out): that is the order in which `product` meets a
 * picture's numbers. A linear layer (out, in) becomes (in, out). Both lie in panels of 8 columns. All else stays.
 */
function readWeights({ tensors, data }) {
  const half = new Uint16Array(bytes(data).buffer), weights = {};
  for (const [name, [begin, shape]] of Object.entries(tensors)) {
    const [n, inner = 1, height = 1, width = 1] = shape;
    if (!name.endsWith("weight") || shape.length === 1) {
      const size = shape.reduce((a, b) => a * b, 1), at = allocate(up(size, 8));
      F.fill(0, at, at + up(size, 8));
      for (let k = 0; k < size; k++) F[at + k] = HALF[half[begin + k]];
      weights[name] = { at, shape };
      continue;
    }
    const even = up(inner, 2), depth = height * width * even, at = allocate(up(n, 8) * depth);
    F.fill(0, at, at + up(n, 8) * depth);
    for (let o = 0, from = begin; o < n; o++) for (let i = 0; i < inner; i++) for (let k = 0; k < height * width; k++)
      F[at + ((o >> 3) * depth + k * even + i) * 8 + (o & 7)] = HALF[half[from++]];
    weights[name] = { at, n: up(n, 8), depth };
  }
  return weights;
}

// Layers. `key` is the layer's name in the weights.

/** Lines (their addresses from I[rows] on, m of them, and up to a multiple of 4) times a layer's matrix, and its bias. */
function product(rows, m, parts, length, stride, weights, key, add = 0) {
  const { at, n } = weights[`${key}.weight`], made = allocate(up(m, 4) * n);
  for (let i = m; i < up(m, 4); i++) I[rows + i] = I[rows + m - 1];
  const bias = weights[`${key}.bias`]?.at ?? zeros;
  kernels.product(4 * rows, up(m, 4), parts, length, stride, 4 * at, 4 * bias, 4 * add, 4 * made, n);
  return made;
}

/** A linear layer on m lines of c numbers from F[at] on, `add` added: (m, c) -> (m, out). */
function linear(weights, key, at, m, c, add = 0) {
  const rows = allocate(m + 4);
  for (let i = 0; i < m; i++) I[rows + i] = 4 * (at + i * c);
  return product(rows, m, 1, c, c, weights, key, add);
}

/** A 3 x 3 convolution of a bordered picture, `add` added. */
function convolution(weights, key, x, { stride = 1, add = 0 } = {}) {
  const h = x.h / stride, w = x.w / stride, line = (x.w + 2) * x.c, rows = allocate(x.b * h * w + 4);
  let i = rows;
  for (let b = 0; b < x.b; b++) for (let r = 0; r < h; r++) for (let q = 0; q < w; q++)
    I[i++] = 4 * (x.at + (b * (x.h + 2) + r * stride) * line + q * stride * x.c);
  const at = product(rows, x.b * h * w, 3, 3 * x.c, line, weights, key, add);
  return { at, b: x.b, h, w, c: weights[`${key}.weight`].n };
}

/** Group normalisation, then FiLM by scales and shifts (b, 2 c) from F[film] on, then SiLU. */
function normalise(weights, key, x, { film = 0, silu = true, border = false } = {}) {
  const y = border ? bordered(x.b, x.h, x.w, x.c) : picture(x.b, x.h, x.w, x.c), mark = free;
  const size = x.h * x.w * x.c, edge = border ? 1 : 0, line = (x.w + 2 * edge) * x.c;
  let groups = Math.min(32, Math.max(1, x.c >> 3));
  while (x.c % groups) groups--;
  const together = x.c / groups, count = x.h * x.w * together;
  const sums = allocate(x.c), mean = allocate(x.c), scale = allocate(x.c), shift = allocate(x.c);
  const gamma = weights[`${key}.weight`].at, beta = weights[`${key}.bias`].at;
  const ofGroup = c => { // the sum over the group that begins with channel c
    let total = 0;
    for (let k = c; k < c + together; k++) total += F[sums + k];
    return total;
  };
  for (let b = 0; b < x.b; b++) {
    const at = x.at + b * size, told = film + b * 2 * x.c;
    kernels.sums(4 * at, x.h * x.w, x.c, 4 * zeros, 1, 4 * sums);
    for (let c = 0; c < x.c; c += together) F.fill(ofGroup(c) / count, mean + c, mean + c + together);
    kernels.sums(4 * at, x.h * x.w, x.c, 4 * mean, 2, 4 * sums);
    for (let c = 0; c < x.c; c += together) {
      const inverse = 1 / Math.sqrt(ofGroup(c) / count + 1e-5);
      for (let k = c; k < c + together; k++) {
        const s = F[gamma + k] * inverse, factor = film ? 1 + F[told + k] : 1;
        F[scale + k] = s * factor;
        F[shift + k] = (F[beta + k] - F[mean + k] * s) * factor + (film ? F[told + x.c + k] : 0);
      }
    }
    const to = y.at + b * (x.h + 2 * edge) * line + edge * (line + x.c);
    kernels.affine(4 * at, 4 * to, x.h, x.w, x.c, 4 * scale, 4 * shift, silu ? 1 : 0, line);
  }
  free = mark;
  return y;
}

/** Batch normalisation by the means and variances of the training, then ReLU, in place. */
function normalisedByBatch(weights, key, x) {
  const [gamma, beta, mean, variance] = ["weight", "bias", "running_mean", "running_var"].map(
    name => weights[`${key}.${name}`].at);
  for (let c = 0; c < x.c; c++) {
    const scale = F[gamma + c] / Math.sqrt(F[variance + c] + 1e-5), shift = F[beta + c] - F[mean + c] * scale;
    for (let i = x.at + c; i < x.at + x.b * x.h * x.w * x.c; i += x.c) F[i] = Math.max(0, F[i] * scale + shift);
  }
  return x;
}

/** The largest of each 2 x 2 pixels; a last line or column that has no partner falls away. */
function pool(x) {
  const y = picture(x.b, Math.floor(x.h / 2), Math.floor(x.w / 2), x.c), line = x.w * x.c;
  let to = y.at;
  for (let b = 0; b < x.b; b++) for (let r = 0; r < y.h; r++) for (let q = 0; q < y.w; q++)
    for (let c = 0, at = x.at + (b * x.h + 2 * r) * line + 2 * q * x.c; c < x.c; c++, at++)
      F[to++] = Math.max(F[at], F[at + x.c], F[at + line], F[at + line + x.c]);
  return y;
}

/** Two convolutions beside a shortcut; embedding: where the time's (b, channels) lie, or nothing. */
function residualBlock(weights, key, x, embedding) {
  const mark = free;
  const h = convolution(weights, `${key}.conv1`, normalise(weights, `${key}.norm1`, x, { border: true }));
  const film = embedding ? linear(weights, `${key}.embedding`, embedding.at, x.b, embedding.c) : 0;
  const shortcut = weights[`${key}.shortcut.weight`]
    ? linear(weights, `${key}.shortcut`, x.at, x.b * x.h * x.w, x.c) : x.at;
  const y = normalise(weights, `${key}.norm2`, h, { film, border: true });
  return keep(mark, convolution(weights, `${key}.conv2`, y, { add: shortcut }));
}

/** Every pixel asks, and reads from all pixels or from the context's tokens, {at, count, c} with (b, count, c).
 *
 * A context with `maps` is told where each pixel looks: maps[key] becomes {b, weights}, (b, pixels, tokens), the mean
 * over the heads, whose rows sum to 1.
 *
 * Source: Vaswani et al. 2017, equation 1.
 */
function attention(weights, key, x, context) {
  const mark = free, C = x.c, n = x.h * x.w, pixels = normalise(weights, `${key}.norm`, x, { silu: false });
  const tokens = context || { at: pixels.at, count: n, c: C }, m = tokens.count, wide = up(m, 8);
  const query = linear(weights, `${key}.query`, pixels.at, x.b * n, C); // (b n, C)
  const keyValue = linear(weights, `${key}.key_value`, tokens.at, x.b * m, tokens.c); // (b m, 2 C)
  let heads = Math.max(1, Math.floor(C / HEAD));
  while (C % heads) heads--;
  const D = C / heads, even = up(D, 2), deep = up(D, 8);
  const rows = allocate(n + 4), keys = allocate(even * wide), values = allocate(wide * deep);
  const scores = allocate(up(n, 4) * wide), part = allocate(up(n, 4) * deep), read = allocate(up(x.b * n, 4) * C);
  const map = context?.maps && new Float32Array(x.b * n * m);
  if (map) context.maps[key] = { b: x.b, weights: map };
  F.fill(0, keys, part); // what fills up a panel must be 0
  const times = (from, pitch, length, b, to, columns) => {
    for (let i = 0; i < up(n, 4); i++) I[rows + i] = 4 * (from + Math.min(i, n - 1) * pitch);
    kernels.product(4 * rows, up(n, 4), 1, length, length, 4 * b, 4 * zeros, 0, 4 * to, columns);
  };
  for (let b = 0; b < x.b; b++) for (let head = 0; head < heads; head++) {
    for (let j = 0; j < m; j++) { // keys as (D, m), values as (m, D), both in panels of 8 columns
      const from = keyValue + (b * m + j) * 2 * C + head * D;
      const key = keys + (j >> 3) * even * 8 + (j & 7);
      for (let d = 0; d < D; d++) {
        F[key + d * 8] = F[from + d];
        F[values + ((d >> 3) * wide + j) * 8 + (d & 7)] = F[from + C + d];
      }
    }
    times(query + b * n * C + head * D, C, even, keys, scores, wide); // (n, D) (D, m) -> (n, m)
    kernels.softmax(4 * scores, n, m, wide, 1 / Math.sqrt(D));
    if (map) for (let i = 0; i < n; i++) for (let j = 0; j < m; j++)
      map[(b * n + i) * m + j] += F[scores + i * wide + j] / heads;
    times(scores, wide, wide, values, part, deep); // (n, m) (m, D) -> (n, D)
    for (let i = 0; i < n; i++)
      F.copyWithin(read + (b * n + i) * C + head * D, part + i * deep, part + i * deep + D);
  }
  return keep(mark, { ...x, at: linear(weights, `${key}.out`, read, x.b * n, C, x.at) });
}

/** The picture with a border around it, every pixel `times` times in each direction. */
function withBorder(x, times = 1) {
  const y = bordered(x.b, x.h * times, x.w * times, x.c), line = (y.w + 2) * x.c;
  for (let b = 0; b < x.b; b++) for (let r = 0; r < y.h; r++) {
    const from = x.at + (b * x.h + Math.floor(r / times)) * x.w * x.c;
    const to = y.at + (b * (y.h + 2) + r + 1) * line + x.c;
    if (times === 1) F.copyWithin(to, from, from + x.w * x.c);
    else for (let q = 0; q < y.w; q++) {
      const pixel = from + Math.floor(q / times) * x.c;
      F.copyWithin(to + q * x.c, pixel, pixel + x.c);
    }
  }
  return y;
}

/** Half the height and width, by a convolution with stride 2. */
function downsample(weights, key, x) {
  const mark = free;
  return keep(mark, convolution(weights, key, withBorder(x), { stride: 2 }));
}

/** Twice the height and width: repeat every pixel, then convolve. */
function upsample(weights, key, x) {
  const mark = free;
  return keep(mark, convolution(weights, `${key}.conv`, withBorder(x, 2)));
}

/** The channels of x, then those of y. */
function beside(x, y) {
  const z = picture(x.b, x.h, x.w, x.c + y.c);
  for (let p = 0; p < x.b * x.h * x.w; p++) {
    F.copyWithin(z.at + p * z.c, x.at + p * x.c, x.at + (p + 1) * x.c);
    F.copyWithin(z.at + p * z.c + x.c, y.at + p * y.c, y.at + (p + 1) * y.c);
  }
  return z;
}

/** Arrays (b, channels, side, side) side by side, their patches of p x p pixels folded into channels: a bordered
 * picture, its channels filled up to an even number. planes: [[array, channels], ...]. */
function fold(planes, b, side, p) {
  const channels = planes.reduce((sum, [, c]) => sum + c, 0), size = side / p;
  const x = bordered(b, size, size, up(channels * p * p, 2));
  for (let k = 0; k < b; k++) for (let r = 0; r < side; r++) for (let q = 0; q < side; q++) {
    const pixel = (k * (size + 2) + Math.floor(r / p) + 1) * (size + 2) + Math.floor(q / p) + 1;
    let to = x.at + pixel * x.c + (r % p) * p + q % p; // channel c of a pixel's patch goes to c p p + i p + j
    for (const [from, c] of planes)
      for (let channel = 0; channel < c; channel++, to += p * p) F[to] = from[((k * c + channel) * side + r) * side + q];
  }
  return x;
}

/** The inverse of `fold`: a picture -> an array (b, channels, side, side). */
function unfold(x, channels, p) {
  const side = x.h * p, y = new Float32Array(x.b * channels * side * side);
  let i = 0;
  for (let k = 0; k < x.b; k++) for (let c = 0; c < channels; c++) for (let r = 0; r < side; r++)
    for (let q = 0; q < side; q++) {
      const pixel = (k * x.h + Math.floor(r / p)) * x.w + Math.floor(q / p);
      y[i++] = F[x.at + pixel * x.c + c * p * p + (r % p) * p + q % p];
    }
  return y;
}
