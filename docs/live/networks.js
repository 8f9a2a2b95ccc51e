// The networks: diffusion_book/networks/unet.py, conditioning.py and vae.py once more.
// Arrays come and go as Float32Array (b, channels, height, width). A model is {recipe, weights}.

/** Times -> (b, dim): cosines and sines of many frequencies, each number rounded as in float32. */
function sinusoidalEmbedding(t, dim) {
  const half = dim / 2, round = Math.fround, at = allocate(t.length * dim);
  for (let k = 0; k < half; k++) {
    const frequency = round(Math.exp(round(round(round(-Math.log(10000)) * k) / half)));
    for (let b = 0; b < t.length; b++) {
      const angle = round(round(1000 * round(t[b])) * frequency);
      F[at + b * dim + k] = Math.cos(angle);
      F[at + b * dim + half + k] = Math.sin(angle);
    }
  }
  return at;
}

function silu(at, count) {
  for (let i = at; i < at + count; i++) F[i] /= 1 + Math.exp(-F[i]);
}

/** A residual block, then self-attention and cross-attention where the level has them. */
function block(weights, key, x, embedding, context) {
  x = residualBlock(weights, `${key}.residual`, x, embedding);
  if (weights[`${key}.self_attention.query.weight`]) x = attention(weights, `${key}.self_attention`, x);
  if (weights[`${key}.cross_attention.query.weight`]) x = attention(weights, `${key}.cross_attention`, x, context);
  return x;
}

/** The learned numbers of each class, one after the other; -1 stands for no class and has the last row of the table. */
function classEmbedding(weights, labels) {
  const { at, shape: [rows, ...rest] } = weights["classes.table"], size = rest.reduce((a, b) => a * b);
  const told = new Float32Array(labels.length * size);
  labels.forEach((label, b) => {
    const row = at + (label < 0 ? rows - 1 : label) * size;
    told.set(F.subarray(row, row + size), b * size);
  });
  return told;
}

/** x (b, channels, side, side), times t, and labels where the model knows classes -> an array like x.
 *
 * maps: an object that is told where cross-attention looks, see `attention`.
 */
function unet({ recipe, weights }, x, t, labels, maps) {
  const mark = free, b = t.length, config = recipe.network, base = config.base_channels;
  const name = recipe.condition ? key => `unet.${key}` : key => key;
  const planes = [[x, config.in_channels]];
  let context;
  if (config.concat_channels) planes.push([classEmbedding(weights, labels), config.concat_channels]);
  if (config.context_dim) {
    const tokens = classEmbedding(weights, labels), count = tokens.length / b / config.context_dim;
    context = { at: allocate(tokens.length), count, c: config.context_dim, maps };
    F.set(tokens, context.at);
  }
  const hidden = linear(weights, name("time.0"), sinusoidalEmbedding(t, 2 * base), b, 2 * base);
  silu(hidden, b * 4 * base);
  const embedding = { at: linear(weights, name("time.2"), hidden, b, 4 * base), c: 4 * base };
  silu(embedding.at, b * 4 * base);

  let h = convolution(weights, name("conv_in"), fold(planes, b, config.image_size, config.patch_size));
  const bridges = [h], levels = config.channel_multipliers.length;
  for (let level = 0; level < levels; level++) {
    if (level > 0) bridges.push(h = downsample(weights, name(`shrink.${level - 1}`), h));
    for (let k = 0; k < config.layers_per_block; k++)
      bridges.push(h = block(weights, name(`down.${level}.${k}`), h, embedding, context));
  }
  const middle = free;
  for (let k = 0; k < 2; k++) h = block(weights, name(`middle.${k}`), h, embedding, context);
  for (let level = 0; level < levels; level++) {
    if (level > 0) h = keep(middle, upsample(weights, name(`grow.${level - 1}`), h));
    for (let k = 0; k <= config.layers_per_block; k++)
      h = keep(middle, block(weights, name(`up.${level}.${k}`), beside(h, bridges.pop()), embedding, context));
  }
  h = convolution(weights, name("conv_out"), normalise(weights, name("norm_out"), h, { border: true }));
  free = mark;
  return unfold(h, config.in_channels, config.patch_size);
}

/** The coarsest level's core: a block, attention where there is more than one position, a block. */
function middleBlocks(weights, key, h) {
  let number = 0;
  h = residualBlock(weights, `${key}.middle.${number++}`, h);
  if (weights[`${key}.middle.1.query.weight`]) h = attention(weights, `${key}.middle.${number++}`, h);
  return residualBlock(weights, `${key}.middle.${number}`, h);
}

/** Pictures (b, 1, 32, 32) -> their latents, the posteriors' means, of unit scale (b, C, 4, 4). */
function encode({ recipe: { vae: config }, weights }, images) {
  const mark = free, b = images.length / (config.image_channels * config.image_size ** 2);
  const x = fold([[images, config.image_channels]], b, config.image_size, config.patch_size);
  let h = convolution(weights, "encoder.conv_in", x), number = 0;
  config.channel_multipliers.forEach((_, level) => {
    if (level > 0) h = downsample(weights, `encoder.levels.${number++}`, h);
    for (let k = 0; k < config.layers_per_block; k++) h = residualBlock(weights, `encoder.levels.${number++}`, h);
  });
  h = middleBlocks(weights, "encoder", h);
  h = convolution(weights, "encoder.conv_out", normalise(weights, "encoder.norm_out", h, { border: true }));
  const moments = unfold(h, 2 * config.latent_channels, 1), plane = h.h * h.w, size = config.latent_channels * plane;
  const { latent_mean: mean, latent_std: std } = weights, latents = new Float32Array(b * size);
  for (let i = 0; i < latents.length; i++) {
    const channel = Math.floor(i / plane) % config.latent_channels;
    latents[i] = (moments[Math.floor(i / size) * 2 * size + i % size] - F[mean.at + channel]) / F[std.at + channel];
  }
  free = mark;
  return latents;
}

/** Latents of unit scale (b, C, 4, 4) -> pictures (b, 1, 32, 32), about [-1, 1]. */
function decode({ recipe: { vae: config }, weights }, latents) {
  const mark = free, C = config.latent_channels, levels = config.channel_multipliers.length;
  const side = config.image_size / config.patch_size / 2 ** (levels - 1), plane = side * side;
  const { latent_mean: mean, latent_std: std } = weights, b = latents.length / (C * plane);
  const scaled = latents.map((value, i) => {
    const channel = Math.floor(i / plane) % C;
    return value * F[std.at + channel] + F[mean.at + channel];
  });
  let h = convolution(weights, "decoder.conv_in", fold([[scaled, C]], b, side, 1)), number = 0;
  h = middleBlocks(weights, "decoder", h);
  for (let level = levels - 1; level >= 0; level--) {
    for (let k = 0; k < config.layers_per_block; k++) h = residualBlock(weights, `decoder.levels.${number++}`, h);
    if (level > 0) h = upsample(weights, `decoder.levels.${number++}`, h);
  }
  h = convolution(weights, "decoder.conv_out", normalise(weights, "decoder.norm_out", h, { border: true }));
  free = mark;
  return unfold(h, config.image_channels, config.patch_size);
}

// The classifier: diffusion_book/networks/classifier.py once more, its evaluation mode.

const NECK = 96; // channels of its last stage

/** Pictures (b, 28, 28) in [-1, 1] -> the probabilities of the ten digits, an array of ten for each. */
function classify({ weights }, images) {
  const mark = free, b = images.length / 28 ** 2;
  const bytes = images.map(value => Math.round((value + 1) * 127.5) / 127.5 - 1); // as if stored as files
  let h = fold([[bytes, 1]], b, 28, 1);
  for (const [conv, pooled] of [[0, true], [4, false], [7, true], [11, false], [14, true]]) {
    h = normalisedByBatch(weights, `stages.${conv + 1}`, convolution(weights, `stages.${conv}`, h));
    if (pooled) h = pool(h);
    h = withBorder(h);
  }
  const lines = allocate(b * NECK * 9), seen = b * 64; // PyTorch flattens (channels, 3, 3)
  for (let k = 0, to = lines; k < b; k++) for (let c = 0; c < NECK; c++) for (let r = 1; r < 4; r++)
    for (let q = 1; q < 4; q++) F[to++] = F[h.at + ((k * 5 + r) * 5 + q) * NECK + c];
  const features = linear(weights, "neck.2", lines, b, NECK * 9);
  for (let i = features; i < features + seen; i++) F[i] = Math.max(0, F[i]);
  const logits = linear(weights, "head", features, b, 64), pitch = weights["head.weight"].n;
  const read = Array.from({ length: b }, (_, k) => {
    const exp = Array.from(F.subarray(logits + k * pitch, logits + k * pitch + 10), Math.exp);
    const total = exp.reduce((sum, value) => sum + value);
    return exp.map(value => value / total);
  });
  free = mark;
  return read;
}
