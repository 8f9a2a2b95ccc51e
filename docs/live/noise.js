// PyTorch's random numbers, so that a seed draws the same digit here as in the book.
// A generator is {next, spare}: `next()` gives 32 random bits, `spare` keeps the second number of a pair.

/** The seed of sample `index`, as diffusion_book.samplers.sample_generators derives it: the lower 32 bits of
 * numpy.random.SeedSequence([seed, index]).generate_state(1, uint64), for torch's generator reads no others.
 *
 * Source: O'Neill, "Developing a seed_seq alternative", 2015, in numpy's constants.
 */
function seedOf(seed, index) {
  const words = [seed, index].flatMap(n => n < 2 ** 32 ? [n >>> 0] : [n >>> 0, Math.floor(n / 2 ** 32) >>> 0]);
  let multiplier = 0x43b0d7e5;
  const hash = value => {
    value ^= multiplier;
    multiplier = Math.imul(multiplier, 0x931e8875);
    value = Math.imul(value, multiplier);
    return value ^ value >>> 16;
  };
  const mix = (x, y) => {
    const mixed = Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y);
    return mixed ^ mixed >>> 16;
  };
  const pool = [0, 1, 2, 3].map(i => hash(words[i] || 0));
  for (let from = 0; from < 4; from++) for (let to = 0; to < 4; to++)
    if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  for (const word of words.slice(4)) for (let to = 0; to < 4; to++) pool[to] = mix(pool[to], hash(word));
  const value = Math.imul(pool[0] ^ 0x8b51f9dd, Math.imul(0x8b51f9dd, 0x58f38ded));
  return (value ^ value >>> 16) >>> 0;
}

/** torch.Generator().manual_seed(seed), the Mersenne Twister. Source: Matsumoto & Nishimura 1998. */
function generator(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let k = 1; k < 624; k++) state[k] = Math.imul(1812433253, state[k - 1] ^ state[k - 1] >>> 30) + k;
  let read = 624;
  const next = () => {
    if (read === 624) {
      for (let k = 0; k < 624; k++) {
        const y = state[k] & 0x80000000 | state[(k + 1) % 624] & 0x7fffffff;
        state[k] = state[(k + 397) % 624] ^ y >>> 1 ^ (y & 1 ? 0x9908b0df : 0);
      }
      read = 0;
    }
    let y = state[read++];
    y ^= y >>> 11, y ^= y << 7 & 0x9d2c5680, y ^= y << 15 & 0xefc60000;
    return (y ^ y >>> 18) >>> 0;
  };
  return { next, spare: null };
}

/** One generator for each sample, from the sample `first` on. */
function sampleGenerators(seed, count, first = 0) {
  return Array.from({ length: count }, (_, i) => generator(seedOf(seed, first + i)));
}

/** Standard normal noise, `size` numbers from each of some generators: what torch.randn gives on a CPU.
 *
 * Source: Box & Muller 1958. PyTorch makes pairs of the numbers k and k + 8 of each 16, from uniform ones of 24 bits;
 * where the size is no multiple of 16, it draws the last 16 again. Fewer than 16 come one by one, from 53 bits.
 */
function randn(generators, size) {
  const all = new Float32Array(generators.length * size);
  generators.forEach((source, row) => {
    const x = all.subarray(row * size, (row + 1) * size);
    if (size < 16) {
      for (let i = 0; i < size; i++) x[i] = oneNormal(source);
      return;
    }
    const uniform = () => (source.next() & 0xffffff) / 2 ** 24;
    const pairs = begin => {
      for (let i = begin; i < begin + 8; i++) {
        const radius = Math.sqrt(-2 * Math.log(1 - x[i])), angle = 2 * Math.PI * x[i + 8];
        x[i] = radius * Math.cos(angle), x[i + 8] = radius * Math.sin(angle);
      }
    };
    for (let i = 0; i < size; i++) x[i] = uniform();
    for (let i = 0; i + 16 <= size; i += 16) pairs(i);
    if (size % 16) {
      for (let i = size - 16; i < size; i++) x[i] = uniform();
      pairs(size - 16);
    }
  });
  return all;
}

function oneNormal(source) {
  if (source.spare !== null) {
    const spare = source.spare;
    source.spare = null;
    return spare;
  }
  const uniform = () => ((source.next() & 0x1fffff) * 2 ** 32 + source.next()) / 2 ** 53;
  const angle = 2 * Math.PI * uniform(), radius = Math.sqrt(-2 * Math.log1p(-uniform()));
  source.spare = radius * Math.sin(angle);
  return radius * Math.cos(angle);
}
