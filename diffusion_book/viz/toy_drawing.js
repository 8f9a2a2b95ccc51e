// What the toy shows: two planes and the loss, on canvases that are as sharp as the screen.

const PAPER = "#f7f7f5", INK = "#333333", FAINT = "#dddddA", DRAWN = "#7b2d9e"; // the book's: see style.py
const CLASS_COLOURS = ["#0072b2", "#d55e00", "#009e73"], CLASS_NAMES = ["blue", "orange", "green"];
const CELLS = 64; // of the density, each way
const WIDTH = 0.1; // of the bell that a point counts as in the density

/** A canvas's context in CSS pixels, wiped: [context, width, height]. */
function clean(canvas) {
  const sharp = window.devicePixelRatio || 1, wide = canvas.clientWidth, high = canvas.clientHeight;
  if (canvas.width !== Math.round(wide * sharp) || canvas.height !== Math.round(high * sharp)) {
    canvas.width = Math.round(wide * sharp);
    canvas.height = Math.round(high * sharp);
  }
  const context = canvas.getContext("2d");
  context.setTransform(sharp, 0, 0, sharp, 0, 0);
  context.fillStyle = PAPER;
  context.fillRect(0, 0, wide, high);
  return [context, wide, high];
}

/** An empty plane with its two axes, and the functions that place a point on it. */
function plane(canvas) {
  const [context, wide, high] = clean(canvas), unit = wide / (2 * LIMIT);
  const across = x => wide / 2 + unit * x, down = y => high / 2 - unit * y;
  context.strokeStyle = FAINT;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(0, down(0)), context.lineTo(wide, down(0));
  context.moveTo(across(0), 0), context.lineTo(across(0), high);
  context.stroke();
  return { context, wide, high, unit, across, down };
}

function dots({ context, across, down }, points, radius, colourOf) {
  for (let n = 0; 2 * n < points.length; n++) {
    context.fillStyle = colourOf(n);
    context.beginPath();
    context.arc(across(points[2 * n]), down(points[2 * n + 1]), radius, 0, 2 * Math.PI);
    context.fill();
  }
}

/** The data, and arrows the way in which points move while t falls. cursor: [x, y] of the keys, or null. */
function drawData(canvas, { points, labels }, field, cursor, hint) {
  const paper = plane(canvas), { context, unit, across, down } = paper;
  context.globalAlpha = 0.5;
  dots(paper, points, Math.max(1.6, unit / 26), n => CLASS_COLOURS[labels[n]]);
  context.globalAlpha = 0.8;
  context.strokeStyle = context.fillStyle = INK;
  context.lineWidth = 1.2;
  field.forEach(([x, y, dx, dy]) => arrow(context, across(x), down(y), unit * dx, -unit * dy));
  context.globalAlpha = 1;
  if (hint) {
    context.font = "16px sans-serif";
    context.textAlign = "center";
    context.fillText(hint, across(0), down(0) - 12);
  }
  if (cursor) {
    const [x, y] = [across(cursor[0]), down(cursor[1])];
    context.strokeStyle = CLASS_COLOURS[cursor[2]];
    context.lineWidth = 2;
    context.beginPath();
    context.arc(x, y, 8, 0, 2 * Math.PI);
    context.moveTo(x - 13, y), context.lineTo(x + 13, y), context.moveTo(x, y - 13), context.lineTo(x, y + 13);
    context.stroke();
  }
}

function arrow(context, x, y, dx, dy) {
  const length = Math.hypot(dx, dy);
  if (length < 1) return;
  const head = Math.min(4.5, length / 2), [a, b] = [dx / length * head, dy / length * head];
  context.beginPath();
  context.moveTo(x, y), context.lineTo(x + dx, y + dy);
  context.moveTo(x + dx - a - b / 2, y + dy - b + a / 2), context.lineTo(x + dx, y + dy);
  context.lineTo(x + dx - a + b / 2, y + dy - b - a / 2);
  context.stroke();
}

/** Where points lie how densely, smoothed by a bell: CELLS x CELLS numbers from 0 to 1, the uppermost row first. */
function density(points) {
  const cells = new Float32Array(CELLS * CELLS), cell = 2 * LIMIT / CELLS, reach = Math.ceil(3 * WIDTH / cell);
  for (let n = 0; n < points.length; n += 2) {
    const column = (points[n] + LIMIT) / cell - 0.5, row = (LIMIT - points[n + 1]) / cell - 0.5;
    for (let r = Math.round(row) - reach; r <= row + reach; r++) for (let c = Math.round(column) - reach; c <= column + reach; c++)
      if (r >= 0 && r < CELLS && c >= 0 && c < CELLS)
        cells[r * CELLS + c] += Math.exp(-((r - row) ** 2 + (c - column) ** 2) * cell ** 2 / (2 * WIDTH ** 2));
  }
  const most = cells.reduce((a, b) => Math.max(a, b), 1e-9);
  return cells.map(value => value / most);
}

/** What the network makes of noise: all ends and their density, some of the ways, and where these points are at time t. */
function drawDraws(canvas, states, t, ways = 40) {
  const paper = plane(canvas), { context, wide, high, unit, across, down } = paper, shade = document.createElement("canvas");
  shade.width = shade.height = CELLS;
  const image = new ImageData(CELLS, CELLS);
  density(states.at(-1)).forEach((value, i) => image.data.set([123, 45, 158, 150 * Math.sqrt(value)], 4 * i));
  shade.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(shade, 0, 0, wide, high);

  context.strokeStyle = INK;
  context.lineWidth = 0.8;
  context.globalAlpha = 0.55;
  context.beginPath();
  for (let n = 0; n < ways; n++) states.forEach((state, k) =>
    context[k ? "lineTo" : "moveTo"](across(state[2 * n]), down(state[2 * n + 1])));
  context.stroke();
  context.globalAlpha = 0.7;
  dots(paper, states.at(-1), Math.max(1.6, unit / 32), () => DRAWN);
  context.globalAlpha = 1;
  context.lineWidth = 1.5;
  context.fillStyle = PAPER;
  const now = at(states, t);
  for (let n = 0; n < ways; n++) {
    context.beginPath();
    context.arc(across(now[2 * n]), down(now[2 * n + 1]), Math.max(2.5, unit / 20), 0, 2 * Math.PI);
    context.fill(), context.stroke();
  }
}

/** Where the points of a walk are at time t: between two states on a straight line. */
function at(states, t) {
  const place = (1 - t) * (states.length - 1), k = Math.min(Math.floor(place), states.length - 2), share = place - k;
  return states[k].map((value, i) => value + share * (states[k + 1][i] - value));
}

/** The loss of each step, a mean over some fifty steps on it, and what happened when: [step, words]. Returns the mean. */
function drawLoss(canvas, losses, events) {
  const [context, wide, high] = clean(canvas), left = 8, bottom = high - 8, top = 22;
  const most = losses.reduce((a, b) => Math.max(a, b), 1e-9), last = Math.max(100, losses.length);
  const x = n => left + (wide - 2 * left) * n / last, y = value => bottom - (bottom - top) * value / most;
  const line = (colour, width, values) => {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    values.forEach((value, n) => context.lineTo(x(n), y(value)));
    context.stroke();
  };
  let mean = 0, since = 0;
  line("#c4c4c0", 1, losses);
  line(DRAWN, 2, losses.map((value, n) => {
    if (events.some(([step]) => step === n)) since = 0; // another loss begins
    since += 1;
    return mean += (value - mean) / Math.min(50, since);
  }));
  context.strokeStyle = context.fillStyle = INK;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(left, bottom), context.lineTo(wide - left, bottom);
  for (const [step] of events) context.moveTo(x(step), top), context.lineTo(x(step), bottom);
  context.stroke();
  context.font = "13px sans-serif";
  context.fillText(losses.length ? `loss, from 0 to ${most.toFixed(1)}` : "loss", left, 15);
  for (const [step, words] of events) {
    const room = wide - left - x(step) > context.measureText(words).width + 8;
    context.textAlign = room ? "left" : "right";
    context.fillText(words, x(step) + (room ? 4 : -4), top + 12);
  }
  context.textAlign = "left";
  return mean;
}
