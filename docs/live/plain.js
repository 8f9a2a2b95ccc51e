// The kernels in plain JavaScript, for a browser without WebAssembly. kernels.wat tells what each of them does.
// They take the same addresses, in bytes.

function plainKernels(F, I) {
  return {
    product(rows, m, parts, length, stride, b, bias, add, c, n) {
      rows >>= 2, b >>= 2, bias >>= 2, add >>= 2, c >>= 2;
      // Two lines and four columns at a time: what a processor's registers hold without SIMD.
      for (let j = 0; j < n; j += 4) for (let i = 0; i < m; i += 2) {
        let s0 = F[bias + j], s1 = F[bias + j + 1], s2 = F[bias + j + 2], s3 = F[bias + j + 3];
        let t0 = s0, t1 = s1, t2 = s2, t3 = s3;
        let at = b + (j >> 3) * parts * length * 8 + (j & 4);
        for (let part = 0; part < parts; part++) {
          const x = (I[rows + i] >> 2) + part * stride, y = (I[rows + i + 1] >> 2) + part * stride;
          for (let k = 0; k < length; k++, at += 8) {
            const u = F[x + k], v = F[y + k], b0 = F[at], b1 = F[at + 1], b2 = F[at + 2], b3 = F[at + 3];
            s0 += u * b0, s1 += u * b1, s2 += u * b2, s3 += u * b3;
            t0 += v * b0, t1 += v * b1, t2 += v * b2, t3 += v * b3;
          }
        }
        const to = i * n + j;
        if (add) {
          s0 += F[add + to], s1 += F[add + to + 1], s2 += F[add + to + 2], s3 += F[add + to + 3];
          t0 += F[add + to + n], t1 += F[add + to + n + 1], t2 += F[add + to + n + 2], t3 += F[add + to + n + 3];
        }
        F[c + to] = s0, F[c + to + 1] = s1, F[c + to + 2] = s2, F[c + to + 3] = s3;
        F[c + to + n] = t0, F[c + to + n + 1] = t1, F[c + to + n + 2] = t2, F[c + to + n + 3] = t3;
      }
    },

    sums(x, pixels, channels, mean, power, sums) {
      x >>= 2, mean >>= 2, sums >>= 2;
      const total = new Float64Array(channels);
      for (let p = 0; p < pixels; p++, x += channels) for (let c = 0; c < channels; c++) {
        const d = F[x + c] - F[mean + c];
        total[c] += power === 2 ? d * d : d;
      }
      F.set(total, sums);
    },

    affine(x, y, height, width, channels, scale, shift, silu, pitch) {
      x >>= 2, y >>= 2, scale >>= 2, shift >>= 2;
      for (let r = 0; r < height; r++, x += width * channels, y += pitch) {
        for (let k = 0, c = 0; k < width * channels; k++) {
          const v = F[x + k] * F[scale + c] + F[shift + c];
          F[y + k] = silu ? v / (1 + Math.exp(-v)) : v;
          if (++c === channels) c = 0;
        }
      }
    },

    softmax(x, lines, columns, pitch, scale) {
      for (let at = x >> 2, i = 0; i < lines; i++, at += pitch) {
        let most = -Infinity, total = 0;
        for (let j = at; j < at + columns; j++) most = Math.max(most, F[j]);
        for (let j = at; j < at + columns; j++) total += F[j] = Math.exp(scale * (F[j] - most));
        for (let j = at; j < at + columns; j++) F[j] /= total;
        F.fill(0, at + columns, at + pitch);
      }
    },
  };
}
