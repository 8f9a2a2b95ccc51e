// A sheet of 28 x 28 pixels to draw on, with mouse, finger or keys: <div class="live-paper"> with a canvas and buttons.
//
// It keeps two arrays: ink, 0 to 1, and holes, 1 where the picture has been cut out. Whoever listens to its event
// "drawn" finds both in the element's property `drawing`.

"use strict";
(() => {
  const SIDE = 28, PEN = 1.7, SCISSORS = 3; // pixels: half the width of a stroke, its soft edge included
  const GOLD = [255, 217, 138]; // of a hole
  // What it shows at first: a 3, as two arcs, [x, y] in pixels.
  const arc = (x, y, r, from, to) => Array.from({ length: 9 }, (_, i) => {
    const angle = from + (to - from) * i / 8;
    return [x + r * Math.cos(angle), y + r * Math.sin(angle)];
  });
  const THREE = [...arc(13.5, 9, 4.2, -2.6, 1.5), ...arc(13.5, 18.2, 5, -1.5, 2.6)];

  function setUp(paper) {
    const canvas = paper.querySelector("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
    const ink = new Float32Array(SIDE * SIDE), holes = new Float32Array(SIDE * SIDE);
    const tool = () => paper.querySelector("[name=tool]")?.value; // there may be no scissors
    let pen = null; // where the mouse or finger is, while it is down
    let keys = { x: 13.5, y: 13.5, down: false, shown: false }; // where the keys' pen is
    paper.drawing = { ink, holes };

    /** A stroke from one place to another, [x, y] in pixels. */
    function stroke([x0, y0], [x1, y1]) {
      const cut = tool() === "scissors", radius = cut ? SCISSORS : PEN, square = (x1 - x0) ** 2 + (y1 - y0) ** 2;
      for (let i = 0; i < ink.length; i++) {
        const x = i % SIDE + 0.5, y = Math.floor(i / SIDE) + 0.5; // the pixel's middle
        const along = square && Math.min(1, Math.max(0, ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / square));
        const distance = Math.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0));
        if (distance > radius) continue;
        if (cut) holes[i] = 1;
        else {
          ink[i] = Math.max(ink[i], Math.min(1, radius - distance));
          holes[i] = 0;
        }
      }
      show();
    }

    function show() {
      const image = new ImageData(SIDE, SIDE);
      for (let i = 0; i < ink.length; i++) {
        const x = i % SIDE, y = Math.floor(i / SIDE), grey = Math.round(255 * ink[i]);
        const here = keys.shown && Math.floor(keys.x) === x && Math.floor(keys.y) === y;
        const colour = here ? (keys.down ? [220, 40, 40] : [60, 140, 255]) : holes[i] ? GOLD : [grey, grey, grey];
        image.data.set([...colour, 255], 4 * i);
      }
      context.putImageData(image, 0, 0);
    }

    const tell = () => paper.dispatchEvent(new Event("drawn"));
    const place = event => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width * SIDE, (event.clientY - box.top) / box.height * SIDE];
    };
    const wipe = () => { ink.fill(0), holes.fill(0), show(); };

    canvas.onpointerdown = event => {
      canvas.setPointerCapture(event.pointerId);
      keys.shown = false;
      stroke(pen = place(event), pen);
    };
    canvas.onpointermove = event => {
      if (!pen) return;
      const next = place(event);
      stroke(pen, next);
      pen = next;
    };
    canvas.onpointerup = canvas.onpointercancel = () => { if (pen) tell(); pen = null; };

    const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    canvas.onkeydown = event => {
      const move = MOVES[event.key], before = [keys.x, keys.y];
      if (!move && event.key !== " ") return;
      event.preventDefault();
      keys.shown = true;
      if (move) {
        keys.x = Math.min(SIDE - 0.5, Math.max(0.5, keys.x + move[0]));
        keys.y = Math.min(SIDE - 0.5, Math.max(0.5, keys.y + move[1]));
      } else keys.down = !keys.down;
      if (keys.down) stroke(before, [keys.x, keys.y]), tell();
      else show();
    };
    canvas.onblur = () => { keys.shown = keys.down = false; show(); };

    paper.querySelector(".live-wipe").onclick = () => { wipe(); tell(); };
    paper.querySelector(".live-mend")?.addEventListener("click", () => { holes.fill(0); show(); tell(); });
    THREE.slice(1).forEach((to, i) => stroke(THREE[i], to));
    paper.hidden = false;
    document.querySelectorAll(".live-asleep").forEach(words => words.remove());
  }

  document.querySelectorAll(".live-paper").forEach(setUp);
})();
