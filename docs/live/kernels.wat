;; The loops that take the time, four numbers at once. plain.js says the same in JavaScript.
;;
;; Addresses count bytes; lengths and strides count numbers, all of them float32. Matrices that stand on the right of
;; a product lie in panels of 8 columns: columns 0 to 7 of all lines, then columns 8 to 15, and so on.
(module
  (import "live" "memory" (memory 1))

  ;; c = add + bias + a b, for a of m lines, b of n columns, m a multiple of 4 and n of 8. `add` may be 0: nothing.
  ;; Line i of a is not stored as such: it is `parts` runs of `length` numbers (an even number), the first at the
  ;; address rows[i], each `stride` after the one before. One run makes a plain product; three runs, one for each line
  ;; of the picture under the kernel, make a 3 x 3 convolution.
  ;;
  ;; Four lines and eight columns at a time: sN and tN hold the sums of line N, columns 0 to 3 and 4 to 7.
  (func (export "product")
      (param $rows i32) (param $m i32) (param $parts i32) (param $length i32) (param $stride i32)
      (param $b i32) (param $bias i32) (param $add i32) (param $c i32) (param $n i32)
    (local $i i32) (local $j i32) (local $part i32) (local $k i32) (local $p i32) (local $to i32) (local $line i32)
    (local $a0 i32) (local $a1 i32) (local $a2 i32) (local $a3 i32) (local $x v128) (local $b0 v128) (local $b1 v128)
    (local $s0 v128) (local $s1 v128) (local $s2 v128) (local $s3 v128)
    (local $t0 v128) (local $t1 v128) (local $t2 v128) (local $t3 v128)
    (local.set $line (i32.shl (local.get $n) (i32.const 2)))
    (local.set $stride (i32.shl (i32.sub (local.get $stride) (local.get $length)) (i32.const 2)))
    (loop $columns
      (local.set $i (i32.const 0))
      (loop $lines
        ;; The sums begin with the bias, and with what is to be added.
        (local.set $to (i32.shl (i32.add (i32.mul (local.get $i) (local.get $n)) (local.get $j)) (i32.const 2)))
        (local.set $p (i32.add (local.get $bias) (i32.shl (local.get $j) (i32.const 2))))
        (local.set $s3 (local.tee $s2 (local.tee $s1 (local.tee $s0 (v128.load (local.get $p))))))
        (local.set $t3 (local.tee $t2 (local.tee $t1 (local.tee $t0 (v128.load offset=16 (local.get $p))))))
        (if (local.get $add) (then
          (local.set $p (i32.add (local.get $add) (local.get $to)))
          (local.set $s0 (f32x4.add (local.get $s0) (v128.load (local.get $p))))
          (local.set $t0 (f32x4.add (local.get $t0) (v128.load offset=16 (local.get $p))))
          (local.set $p (i32.add (local.get $p) (local.get $line)))
          (local.set $s1 (f32x4.add (local.get $s1) (v128.load (local.get $p))))
          (local.set $t1 (f32x4.add (local.get $t1) (v128.load offset=16 (local.get $p))))
          (local.set $p (i32.add (local.get $p) (local.get $line)))
          (local.set $s2 (f32x4.add (local.get $s2) (v128.load (local.get $p))))
          (local.set $t2 (f32x4.add (local.get $t2) (v128.load offset=16 (local.get $p))))
          (local.set $p (i32.add (local.get $p) (local.get $line)))
          (local.set $s3 (f32x4.add (local.get $s3) (v128.load (local.get $p))))
          (local.set $t3 (f32x4.add (local.get $t3) (v128.load offset=16 (local.get $p))))))
        (local.set $p (i32.add (local.get $rows) (i32.shl (local.get $i) (i32.const 2))))
        (local.set $a0 (i32.load (local.get $p)))
        (local.set $a1 (i32.load offset=4 (local.get $p)))
        (local.set $a2 (i32.load offset=8 (local.get $p)))
        (local.set $a3 (i32.load offset=12 (local.get $p)))
        (local.set $p (local.get $b))
        (local.set $part (local.get $parts))
        (loop $runs
          (local.set $k (local.get $length))
          (loop $two_lines_of_b
            (local.set $b0 (v128.load (local.get $p)))
            (local.set $b1 (v128.load offset=16 (local.get $p)))
            (local.set $x (v128.load32_splat (local.get $a0)))
            (local.set $s0 (f32x4.relaxed_madd (local.get $x) (local.get $b0) (local.get $s0)))
            (local.set $t0 (f32x4.relaxed_madd (local.get $x) (local.get $b1) (local.get $t0)))
            (local.set $x (v128.load32_splat (local.get $a1)))
            (local.set $s1 (f32x4.relaxed_madd (local.get $x) (local.get $b0) (local.get $s1)))
            (local.set $t1 (f32x4.relaxed_madd (local.get $x) (local.get $b1) (local.get $t1)))
            (local.set $x (v128.load32_splat (local.get $a2)))
            (local.set $s2 (f32x4.relaxed_madd (local.get $x) (local.get $b0) (local.get $s2)))
            (local.set $t2 (f32x4.relaxed_madd (local.get $x) (local.get $b1) (local.get $t2)))
            (local.set $x (v128.load32_splat (local.get $a3)))
            (local.set $s3 (f32x4.relaxed_madd (local.get $x) (local.get $b0) (local.get $s3)))
            (local.set $t3 (f32x4.relaxed_madd (local.get $x) (local.get $b1) (local.get $t3)))
            (local.set $b0 (v128.load offset=32 (local.get $p)))
            (local.set $b1 (v128.load offset=48 (local.get $p)))
            (local.set $x (v128.load32_splat offset=4 (local.get $a0)))
            (local.set $s0 (f32x4.relaxed_madd (local.get $x) (local.get $b0) (local.get $s0)))
            (local.set $t0 (f32x4.relaxed_madd (local.get $x) (local.get $b1) (local.get $t0)))
            (local.set $x (v128.load32_splat offset=4 (local.get $a1)))
            (local.set $s1 (f32x4.relaxed_madd (local.get $x) (local.get $b0) (local.get $s1)))
            (local.set $t1 (f32x4.relaxed_madd (local.get $x) (local.get $b1) (local.get $t1)))
            (local.set $x (v128.load32_splat offset=4 (local.get $a2)))
            (local.set $s2 (f32x4.relaxed_madd (local.get $x) (local.get $b0) (local.get $s2)))
            (local.set $t2 (f32x4.relaxed_madd (local.get $x) (local.get $b1) (local.get $t2)))
            (local.set $x (v128.load32_splat offset=4 (local.get $a3)))
            (local.set $s3 (f32x4.relaxed_madd (local.get $x) (local.get $b0) (local.get $s3)))
            (local.set $t3 (f32x4.relaxed_madd (local.get $x) (local.get $b1) (local.get $t3)))
            (local.set $a0 (i32.add (local.get $a0) (i32.const 8)))
            (local.set $a1 (i32.add (local.get $a1) (i32.const 8)))
            (local.set $a2 (i32.add (local.get $a2) (i32.const 8)))
            (local.set $a3 (i32.add (local.get $a3) (i32.const 8)))
            (local.set $p (i32.add (local.get $p) (i32.const 64)))
            (br_if $two_lines_of_b (local.tee $k (i32.sub (local.get $k) (i32.const 2)))))
          (local.set $a0 (i32.add (local.get $a0) (local.get $stride)))
          (local.set $a1 (i32.add (local.get $a1) (local.get $stride)))
          (local.set $a2 (i32.add (local.get $a2) (local.get $stride)))
          (local.set $a3 (i32.add (local.get $a3) (local.get $stride)))
          (br_if $runs (local.tee $part (i32.sub (local.get $part) (i32.const 1)))))
        (local.set $to (i32.add (local.get $c) (local.get $to)))
        (v128.store (local.get $to) (local.get $s0))
        (v128.store offset=16 (local.get $to) (local.get $t0))
        (local.set $to (i32.add (local.get $to) (local.get $line)))
        (v128.store (local.get $to) (local.get $s1))
        (v128.store offset=16 (local.get $to) (local.get $t1))
        (local.set $to (i32.add (local.get $to) (local.get $line)))
        (v128.store (local.get $to) (local.get $s2))
        (v128.store offset=16 (local.get $to) (local.get $t2))
        (local.set $to (i32.add (local.get $to) (local.get $line)))
        (v128.store (local.get $to) (local.get $s3))
        (v128.store offset=16 (local.get $to) (local.get $t3))
        (br_if $lines (i32.lt_s (local.tee $i (i32.add (local.get $i) (i32.const 4))) (local.get $m))))
      (local.set $b (local.get $p))
      (br_if $columns (i32.lt_s (local.tee $j (i32.add (local.get $j) (i32.const 8))) (local.get $n)))))

  ;; sums[c] = the sum over all pixels of (x - mean[c])^power, for each channel, power 1 or 2. Channels: a multiple of 4.
  (func (export "sums")
      (param $x i32) (param $pixels i32) (param $channels i32) (param $mean i32) (param $power i32) (param $sums i32)
    (local $c i32) (local $p i32) (local $at i32) (local $line i32)
    (local $m v128) (local $d v128) (local $sum v128)
    (local.set $line (i32.shl (local.get $channels) (i32.const 2)))
    (loop $each_four_channels
      (local.set $sum (v128.const f32x4 0 0 0 0))
      (local.set $m (v128.load (i32.add (local.get $mean) (local.get $c))))
      (local.set $at (i32.add (local.get $x) (local.get $c)))
      (local.set $p (local.get $pixels))
      (loop $each_pixel
        (local.set $d (f32x4.sub (v128.load (local.get $at)) (local.get $m)))
        (if (i32.eq (local.get $power) (i32.const 2))
          (then (local.set $d (f32x4.mul (local.get $d) (local.get $d)))))
        (local.set $sum (f32x4.add (local.get $sum) (local.get $d)))
        (local.set $at (i32.add (local.get $at) (local.get $line)))
        (br_if $each_pixel (local.tee $p (i32.sub (local.get $p) (i32.const 1)))))
      (v128.store (i32.add (local.get $sums) (local.get $c)) (local.get $sum))
      (br_if $each_four_channels
        (i32.lt_s (local.tee $c (i32.add (local.get $c) (i32.const 16))) (local.get $line)))))

  ;; e^x, to the last digit or two: 2^whole by the exponent's bits, times a polynomial of what is left.
  ;; Source: Moshier's Cephes, expf.
  (func $exp (param $x v128) (result v128)
    (local $whole v128) (local $r v128) (local $e v128)
    (local.set $x (f32x4.min (f32x4.max (local.get $x) (v128.const f32x4 -87 -87 -87 -87))
                             (v128.const f32x4 87 87 87 87)))
    (local.set $whole (f32x4.nearest (f32x4.mul (local.get $x)
      (v128.const f32x4 1.44269504 1.44269504 1.44269504 1.44269504))))
    ;; r = x - whole ln 2, with ln 2 in two parts, so that no digit is lost.
    (local.set $r (f32x4.sub (local.get $x) (f32x4.mul (local.get $whole)
      (v128.const f32x4 0.693359375 0.693359375 0.693359375 0.693359375))))
    (local.set $r (f32x4.sub (local.get $r) (f32x4.mul (local.get $whole)
      (v128.const f32x4 -2.12194440e-4 -2.12194440e-4 -2.12194440e-4 -2.12194440e-4))))
    (local.set $e (v128.const f32x4 1.9875691500e-4 1.9875691500e-4 1.9875691500e-4 1.9875691500e-4))
    (local.set $e (f32x4.add (f32x4.mul (local.get $e) (local.get $r))
      (v128.const f32x4 1.3981999507e-3 1.3981999507e-3 1.3981999507e-3 1.3981999507e-3)))
    (local.set $e (f32x4.add (f32x4.mul (local.get $e) (local.get $r))
      (v128.const f32x4 8.3334519073e-3 8.3334519073e-3 8.3334519073e-3 8.3334519073e-3)))
    (local.set $e (f32x4.add (f32x4.mul (local.get $e) (local.get $r))
      (v128.const f32x4 4.1665795894e-2 4.1665795894e-2 4.1665795894e-2 4.1665795894e-2)))
    (local.set $e (f32x4.add (f32x4.mul (local.get $e) (local.get $r))
      (v128.const f32x4 1.6666665459e-1 1.6666665459e-1 1.6666665459e-1 1.6666665459e-1)))
    (local.set $e (f32x4.add (f32x4.mul (local.get $e) (local.get $r))
      (v128.const f32x4 5.0000001201e-1 5.0000001201e-1 5.0000001201e-1 5.0000001201e-1)))
    (local.set $e (f32x4.add (f32x4.mul (local.get $e) (f32x4.mul (local.get $r) (local.get $r)))
      (f32x4.add (local.get $r) (v128.const f32x4 1 1 1 1))))
    (f32x4.mul (local.get $e) (i32x4.shl
      (i32x4.add (i32x4.trunc_sat_f32x4_s (local.get $whole)) (v128.const i32x4 127 127 127 127)) (i32.const 23))))

  ;; y = scale[c] x + shift[c] for a picture, and with `silu` y / (1 + e^-y). Channels: a multiple of 4.
  ;; `pitch`: from line to line of y, which may have a border.
  (func (export "affine")
      (param $x i32) (param $y i32) (param $height i32) (param $width i32) (param $channels i32)
      (param $scale i32) (param $shift i32) (param $silu i32) (param $pitch i32)
    (local $q i32) (local $c i32) (local $line i32) (local $v v128)
    (local.set $line (i32.shl (local.get $channels) (i32.const 2)))
    (local.set $pitch (i32.shl (i32.sub (local.get $pitch) (i32.mul (local.get $width) (local.get $channels)))
                               (i32.const 2)))
    (loop $lines
      (local.set $q (local.get $width))
      (loop $each_pixel
        (local.set $c (i32.const 0))
        (loop $each_four_channels
          (local.set $v (f32x4.add (v128.load (i32.add (local.get $shift) (local.get $c)))
            (f32x4.mul (v128.load (local.get $x)) (v128.load (i32.add (local.get $scale) (local.get $c))))))
          (if (local.get $silu) (then
            (local.set $v (f32x4.div (local.get $v)
              (f32x4.add (v128.const f32x4 1 1 1 1) (call $exp (f32x4.neg (local.get $v))))))))
          (v128.store (local.get $y) (local.get $v))
          (local.set $x (i32.add (local.get $x) (i32.const 16)))
          (local.set $y (i32.add (local.get $y) (i32.const 16)))
          (br_if $each_four_channels
            (i32.lt_s (local.tee $c (i32.add (local.get $c) (i32.const 16))) (local.get $line))))
        (br_if $each_pixel (local.tee $q (i32.sub (local.get $q) (i32.const 1)))))
      (local.set $y (i32.add (local.get $y) (local.get $pitch)))
      (br_if $lines (local.tee $height (i32.sub (local.get $height) (i32.const 1))))))

  ;; x = softmax(scale x), line by line, where it stands: lines of `pitch` numbers, a multiple of 4, of which the first
  ;; `columns` count and the others become 0.
  (func (export "softmax") (param $x i32) (param $lines i32) (param $columns i32) (param $pitch i32) (param $scale f32)
    (local $at i32) (local $end i32) (local $sum f32) (local $most v128) (local $factor v128) (local $total v128)
    (local.set $factor (f32x4.splat (local.get $scale)))
    (loop $each_line
      (local.set $end (i32.add (local.get $x) (i32.shl (local.get $pitch) (i32.const 2))))
      (local.set $at (i32.add (local.get $x) (i32.shl (local.get $columns) (i32.const 2))))
      (block $filled (loop $fill
        (br_if $filled (i32.ge_u (local.get $at) (local.get $end)))
        (f32.store (local.get $at) (f32.const -1e30))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (br $fill)))
      (local.set $most (v128.const f32x4 -1e30 -1e30 -1e30 -1e30))
      (local.set $at (local.get $x))
      (loop $largest
        (local.set $most (f32x4.max (local.get $most) (v128.load (local.get $at))))
        (br_if $largest (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 16))) (local.get $end))))
      (local.set $most (f32x4.splat (f32.max
        (f32.max (f32x4.extract_lane 0 (local.get $most)) (f32x4.extract_lane 1 (local.get $most)))
        (f32.max (f32x4.extract_lane 2 (local.get $most)) (f32x4.extract_lane 3 (local.get $most))))))
      (local.set $total (v128.const f32x4 0 0 0 0))
      (local.set $at (local.get $x))
      (loop $powers
        (v128.store (local.get $at) (call $exp
          (f32x4.mul (local.get $factor) (f32x4.sub (v128.load (local.get $at)) (local.get $most)))))
        (local.set $total (f32x4.add (local.get $total) (v128.load (local.get $at))))
        (br_if $powers (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 16))) (local.get $end))))
      (local.set $total (f32x4.splat (f32.add
        (f32.add (f32x4.extract_lane 0 (local.get $total)) (f32x4.extract_lane 1 (local.get $total)))
        (f32.add (f32x4.extract_lane 2 (local.get $total)) (f32x4.extract_lane 3 (local.get $total))))))
      (local.set $at (local.get $x))
      (loop $shares
        (v128.store (local.get $at) (f32x4.div (v128.load (local.get $at)) (local.get $total)))
        (br_if $shares (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 16))) (local.get $end))))
      (local.set $x (local.get $end))
      (br_if $each_line (local.tee $lines (i32.sub (local.get $lines) (i32.const 1)))))))
