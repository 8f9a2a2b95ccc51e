// Where cross-attention looks: a place is chosen in the picture, with mouse, finger or arrow keys, and a table shows what
// every layer reads there. The figure is one of the task "watch", with a <table class="live-maps">; page.js brings it
// the weights by the event "maps", {maps: layer -> (pictures, positions, tokens), t}.

"use strict";
(() => {
  const SIDE = 28, PADDING = 2; // pixels of a picture, and around it in the network

  function setUp(table) {
    const figure = table.closest("figure.live"), canvas = figure.querySelector("canvas"), count = canvas.width / SIDE;
    const colours = JSON.parse(table.dataset.colours), tokens = colours.length, caption = table.caption;
    const frame = document.createElement("div"), mark = document.createElement("span");
    let seen, fine; // the last weights, and how many places there are side by side in the finest layer
    let place = { picture: Math.min(3, count - 1), row: 1, column: 1 };
    frame.className = "live-frame", mark.className = "live-place";
    canvas.replaceWith(frame);
    frame.append(canvas, mark);
    canvas.tabIndex = 0;

    const make = (name, content, attributes = {}) => {
      const element = document.createElement(name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      element.append(...[content].flat());
      return element;
    };
    const SVG = "http://www.w3.org/2000/svg";
    const box = (x, y, attributes) => {
      const rect = document.createElementNS(SVG, "rect");
      for (const [key, value] of Object.entries({ x, y, width: 1, height: 1, ...attributes }))
        rect.setAttribute(key, value);
      return rect;
    };

    /** One token's map of a layer of so many places side by side, the chosen place outlined. */
    function drawMap(weights, token, side, row, column) {
      const map = document.createElementNS(SVG, "svg");
      map.setAttribute("viewBox", `-0.1 -0.1 ${side + 0.2} ${side + 0.2}`);
      map.setAttribute("aria-hidden", "true");
      for (let i = 0; i < side * side; i++)
        map.append(box(i % side, Math.floor(i / side), {
          fill: colours[token], "fill-opacity": weights[i * tokens + token].toFixed(3) }));
      map.append(box(column, row, { fill: "none", stroke: "currentColor", "stroke-width": 0.03 * side }));
      return map;
    }

    function show() {
      const { picture, row, column } = place, number = ["first", "second", "third"][picture] || `${picture + 1}th`;
      const pixel = at => Math.min(SIDE, Math.max(0, at * (SIDE + 2 * PADDING) / fine - PADDING)); // where a place begins
      mark.style.left = `${100 * (picture * SIDE + pixel(column)) / canvas.width}%`;
      mark.style.width = `${100 * (pixel(column + 1) - pixel(column)) / canvas.width}%`;
      mark.style.top = `${100 * pixel(row) / SIDE}%`;
      mark.style.height = `${100 * (pixel(row + 1) - pixel(row)) / SIDE}%`;
      const lines = [], read = {};
      for (const [key, all] of Object.entries(seen.maps)) {
        const positions = all.length / count / tokens, side = Math.sqrt(positions);
        const weights = all.subarray(picture * positions * tokens, (picture + 1) * positions * tokens);
        const r = Math.floor(row * side / fine), c = Math.floor(column * side / fine), at = (r * side + c) * tokens;
        const layer = key.replace(/^unet\.|\.cross_attention$/g, "");
        read[layer] = [...weights.subarray(at, at + tokens)];
        const cells = read[layer].map((value, token) =>
          make("td", [drawMap(weights, token, side, r, c), value.toFixed(2)]));
        lines.push(make("tr", [make("th", layer, { scope: "row" }), ...cells]));
      }
      const head = colours.map((_, token) => make("th", `token ${token + 1}`, { scope: "col" }));
      const words = `What row ${row + 1}, column ${column + 1} of the ${number} picture reads at t = ${seen.t.toFixed(2)}`;
      caption.textContent = words; // the same element each time, so that its new words are spoken
      table.replaceChildren(
        caption, make("thead", make("tr", [make("th", "layer", { scope: "col" }), ...head])), make("tbody", lines));
      table.hidden = false;
      figure.dataset.place = JSON.stringify({ ...place, t: seen.t, read });
    }

    figure.addEventListener("maps", ({ detail }) => {
      const sizes = Object.values(detail.maps).map(map => Math.sqrt(map.length / count / tokens));
      seen = detail, fine = Math.max(...sizes);
      show();
    });
    canvas.onpointerdown = event => {
      if (!seen) return;
      const { left, top, width, height } = canvas.getBoundingClientRect();
      const x = (event.clientX - left) / width * canvas.width, y = (event.clientY - top) / height * SIDE;
      const inside = pixel => Math.min(SIDE - 0.01, Math.max(0, pixel));
      const at = pixel => Math.floor((inside(pixel) + PADDING) * fine / (SIDE + 2 * PADDING));
      const picture = Math.min(count - 1, Math.max(0, Math.floor(x / SIDE)));
      place = { picture, row: at(y), column: at(x - picture * SIDE) };
      show();
    };
    const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    canvas.onkeydown = event => {
      const move = MOVES[event.key];
      if (!move || !seen) return;
      event.preventDefault();
      const along = Math.min(count * fine - 1, Math.max(0, place.picture * fine + place.column + move[0]));
      const row = Math.min(fine - 1, Math.max(0, place.row + move[1]));
      place = { picture: Math.floor(along / fine), row, column: along % fine };
      show();
    };
  }

  document.querySelectorAll("table.live-maps").forEach(setUp);
})();
