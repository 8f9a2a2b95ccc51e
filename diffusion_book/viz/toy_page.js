// The toy's controls and its clock: it trains, draws and paints in slices of a few milliseconds, so that the page answers.

const SLICE = 10; // milliseconds of work between two pictures of the screen
const APART = 150; // milliseconds between two pictures of the toy
const DRAWS = 400; // points that are drawn from noise
const PIECE = 200; // of them that move by one step at a time: as long as a step of training takes
const GRID = 15; // arrows each way
const PEN = 0.06; // the standard deviation of drawn points around the pen, and how far apart it sets them
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function setUp(figure) {
  const find = name => figure.querySelector(`[name=${name}]`), part = name => figure.querySelector(`.toy-${name}`);
  const value = name => find(name).value, number = name => Number(value(name));
  const seed = Number(figure.dataset.seed), noise = normals(randomFrom(seed + 1), 2 * DRAWS);
  const toy = figure.toy = { playing: false }; // whoever tests it looks here
  let random, optimise, job = null, making = null, due = true, painted = 0, turn = false, asked = false, fieldDue = false;
  let cursor = null, pen = null;

  // The training

  function restart() {
    random = randomFrom(seed);
    const parameters = newParameters(LAYERS, random);
    Object.assign(toy, { parameters, average: parameters.slice(), losses: [], events: [], pairs: null, target: value("target") });
    optimise = adamW(parameters);
    making = null;
    redraw();
  }

  /** What is drawn with: the mean of the parameters over the last hundred steps. */
  const model = () => ({ parameters: toy.average, target: toy.target });

  function train() {
    const { loss, gradient } = lossAndGradient(toy.parameters, toy.target, batchOf(toy.pairs || toy.data, random));
    optimise(gradient, RATE);
    follow(toy.average, toy.parameters, toy.losses.length);
    toy.losses.push(loss);
    due = true;
  }

  function takeData() {
    toy.data = dataOf(value("points"), randomFrom(seed + 2));
    toy.pairs = making = null;
    if (toy.losses?.length) toy.events.push([toy.losses.length, "new points"]);
    const known = new Set(toy.data.labels), own = value("points") === "own";
    [...find("label").options].forEach((option, n) => { option.disabled = n > 0 && !own && !known.has(n - 1); });
    if (find("label").selectedOptions[0].disabled) find("label").value = NONE;
    find("pen").closest("label").hidden = part("wipe").hidden = !own;
    part("data").classList.toggle("toy-open", own);
    if (own) play(false);
    redraw();
  }

  /** Learn from the model's own pairs from now on. */
  function reflow() {
    making = pairsOf(model(), toy.data, random);
    say("Making 2,048 pairs of noise and the point that the flow takes it to …");
    tell();
    wake();
  }

  function made(pairs) {
    making = null;
    toy.pairs = pairs;
    toy.events.push([toy.losses.length, "reflow"]);
    say("Training on the flow's own pairs.");
    toy.playing = true;
    tell();
  }

  // The clock

  const labels = () => new Int8Array(DRAWS).fill(number("label"));
  const scale = () => (number("label") === NONE ? 1 : number("scale"));

  /** Have the pictures drawn again: the field at once, the walks as soon as they are there. */
  function redraw() {
    due = fieldDue = true;
    job = null;
    wake();
  }

  const wake = () => { if (!asked) asked = true, requestAnimationFrame(tick); };

  /** One piece of a generator's work; when it ends, done(its result). */
  function advance(work, done) {
    const { value, done: over } = work.next();
    if (over) done(value);
  }

  function tick(begun) {
    asked = false;
    if (!figure.isConnected) return;
    const until = performance.now() + SLICE;
    while (performance.now() < until) {
      if (due && !job && (!toy.playing || begun - painted > APART)) {
        due = false;
        job = walk(model(), noise, labels(), number("steps"), scale(), PIECE);
      }
      turn = !turn;
      if (making) advance(making, made);
      else if (toy.playing && (turn || !job)) train();
      else if (job) advance(job, arrived);
      else break;
    }
    if (fieldDue) paintData();
    if (toy.playing || job || making || due) wake();
  }

  function arrived(states) {
    job = null;
    painted = performance.now();
    const { points, labels: classes } = toy.data, label = number("label");
    const same = points.filter((_, i) => label === NONE || classes[i >> 1] === label);
    Object.assign(toy, { states, shown: toy.losses.length, straightness: straightness(states) });
    toy.distance = same.length ? energyDistance(states.at(-1).subarray(0, 400), some(same, 400)) : NaN;
    tell();
    paintDraws();
    fieldDue = true;
  }

  // The pictures

  function paintData() {
    fieldDue = false;
    const t = Math.max(0.02, number("t")), count = GRID ** 2, grid = new Float64Array(2 * count);
    for (let n = 0; n < count; n++) {
      grid[2 * n] = LIMIT * ((2 * (n % GRID) + 1) / GRID - 1);
      grid[2 * n + 1] = LIMIT * ((2 * Math.floor(n / GRID) + 1) / GRID - 1);
    }
    const next = step(model(), grid, t, t - 0.02, new Int8Array(count).fill(number("label")), scale());
    const arrows = Array.from({ length: count }, (_, n) => {
      const dx = (next[2 * n] - grid[2 * n]) / 0.02, dy = (next[2 * n + 1] - grid[2 * n + 1]) / 0.02;
      const longest = 0.9 * 2 * LIMIT / GRID, length = Math.hypot(dx, dy), shrink = longest / (1 + length) || 0;
      return [grid[2 * n] - dx * shrink / 2, grid[2 * n + 1] - dy * shrink / 2, dx * shrink, dy * shrink];
    });
    const hint = toy.data.labels.length ? "" : "Draw points here";
    drawData(part("data"), toy.data, toy.losses.length ? arrows : [], cursor && [...cursor, number("pen")], hint);
  }

  function paintDraws() {
    drawDraws(part("draws"), toy.states, number("t"));
    const mean = drawLoss(part("loss"), toy.losses, toy.events), figures = [`step ${toy.losses.length}`];
    if (toy.losses.length) figures.push(`loss ${mean.toFixed(2)}`);
    if (toy.distance === toy.distance) figures.push(`distance from the data ${toy.distance.toFixed(3)}`);
    figures.push(`straightness S ${toy.straightness.toFixed(2)}`);
    part("numbers").textContent = figures.join(" · ");
    toy.mean = mean;
    describe();
  }

  /** In words, for those who do not see it. */
  function describe() {
    const named = find("points").selectedOptions[0].textContent, t = number("t").toFixed(2), label = number("label");
    const told = label === NONE ? "" : `, class ${CLASS_NAMES[label]} at guidance scale ${number("scale").toFixed(1)}`;
    const keys = value("points") === "own" ? " The arrow keys move the pen, the space bar sets points, Backspace takes them back." : "";
    part("data").setAttribute("aria-label", `Data, ${toy.data.labels.length} points: ${named}. Arrows: where points move at time ${t}${told}.${keys}`);
    part("draws").setAttribute("aria-label", `${DRAWS} points on their way from noise, at time ${t}${told}, after ${toy.losses.length} steps of training; ` +
      `energy distance of their ends from the data ${toy.distance.toFixed(3)}, straightness of their ways ${toy.straightness.toFixed(2)}`);
    part("loss").setAttribute("aria-label", `The loss over ${toy.losses.length} steps${toy.losses.length ? `, now ${toy.mean.toFixed(2)}` : ""}`);
  }

  // The controls

  const say = words => { part("said").textContent = words; };

  function play(on) {
    if (on && !toy.data.labels.length) return say("Draw some points first.");
    toy.playing = on;
    tell();
    if (on) say(toy.pairs ? "Training on the flow's own pairs." : "Training."), wake();
    else if (toy.losses?.length) say(`Paused after ${toy.losses.length} steps.`), redraw();
  }

  /** What can be pressed now, and the sliders' numbers. */
  function tell() {
    part("play").textContent = toy.playing ? "Pause" : "Play";
    part("step").disabled = toy.playing || Boolean(making);
    part("reflow").disabled = toy.target !== "velocity" || Boolean(making) || !toy.losses.length;
    find("scale").disabled = number("label") === NONE;
    for (const input of figure.querySelectorAll("input[type=range]"))
      input.nextElementSibling.value = number(input.name).toFixed((input.step.split(".")[1] || "").length);
  }

  part("play").onclick = () => play(!toy.playing);
  part("step").onclick = () => {
    if (!toy.data.labels.length) return say("Draw some points first.");
    train(), say(`Step ${toy.losses.length}: loss ${toy.losses.at(-1).toFixed(2)}.`), tell(), redraw();
  };
  part("again").onclick = () => { restart(), say("A new network."), tell(); };
  part("reflow").onclick = reflow;
  part("wipe").onclick = () => { takeData(), say("Wiped."); };
  find("points").oninput = () => { takeData(), tell(); };
  find("target").oninput = () => { restart(), tell(); };
  find("pen").oninput = redraw;
  find("t").oninput = () => { tell(), fieldDue = true, wake(); if (toy.states) paintDraws(); };
  for (const name of ["label", "scale", "steps"]) find(name).oninput = () => { tell(), redraw(); };

  // Drawing

  /** Points around a place, as the pen sets them. */
  function set(x, y, count = 1) {
    for (let n = 0; n < count; n++) {
      const [dx, dy] = normals(random, 2), inside = each => Math.min(LIMIT, Math.max(-LIMIT, each));
      toy.data.points.push(inside(x + PEN * dx), inside(y + PEN * dy)), toy.data.labels.push(number("pen"));
    }
    fieldDue = due = true, wake();
  }

  const place = event => {
    const box = part("data").getBoundingClientRect();
    return [LIMIT * (2 * (event.clientX - box.left) / box.width - 1), LIMIT * (1 - 2 * (event.clientY - box.top) / box.height)];
  };
  part("data").onpointerdown = event => {
    if (value("points") !== "own") return;
    part("data").setPointerCapture(event.pointerId);
    cursor = null;
    set(...(pen = place(event)), 3);
  };
  part("data").onpointermove = event => {
    if (!pen) return;
    const next = place(event), length = Math.hypot(next[0] - pen[0], next[1] - pen[1]), steps = Math.floor(length / PEN);
    for (let k = 1; k <= steps; k++) set(pen[0] + (next[0] - pen[0]) * k / steps, pen[1] + (next[1] - pen[1]) * k / steps);
    if (steps) pen = next;
  };
  part("data").onpointerup = part("data").onpointercancel = () => { pen = null; };
  part("data").onkeydown = event => {
    const move = MOVES[event.key];
    if (value("points") !== "own" || !move && event.key !== " " && event.key !== "Backspace") return;
    event.preventDefault();
    cursor ||= [0, 0];
    if (move) cursor = cursor.map((each, axis) => Math.min(LIMIT, Math.max(-LIMIT, each + 0.15 * move[axis])));
    else if (event.key === " ") set(...cursor, 5);
    else toy.data.points.splice(-10), toy.data.labels.splice(-5);
    if (!move) say(`${toy.data.labels.length} points.`);
    else say(`Pen at ${cursor.map(each => each.toFixed(2)).join(", ")}.`);
    redraw();
  };
  part("data").onblur = () => { cursor = null, fieldDue = true, wake(); };

  figure.classList.add("toy-awake");
  takeData();
  restart();
  tell();
  new ResizeObserver(() => { fieldDue = true, wake(); if (toy.states) paintDraws(); }).observe(part("draws"));
}

/** 2 E|a - b| - E|a - a'| - E|b - b'|: 0 where two clouds are drawn alike. Source: Szekely & Rizzo 2013. */
function energyDistance(a, b) {
  const apart = (p, q) => {
    let sum = 0;
    for (let i = 0; i < p.length; i += 2) for (let j = 0; j < q.length; j += 2) sum += Math.hypot(p[i] - q[j], p[i + 1] - q[j + 1]);
    return sum / (p.length * q.length / 4);
  };
  return 2 * apart(a, b) - apart(a, a) - apart(b, b);
}

/** At most `size` numbers of a list of points, spread over it. */
function some(points, size) {
  const apart = Math.max(1, Math.ceil(points.length / size));
  return points.filter((_, i) => (i >> 1) % apart === 0);
}
