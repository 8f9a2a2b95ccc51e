// The live figures of a page: reads their controls, asks the worker, paints its answers.
//
// A figure is written by diffusion_book.viz.in_page. Nothing is loaded before its button is pressed; what has been
// loaded serves all figures of the page. The page itself never computes, so that it never stalls.
//
// A figure has controls of its own, or shares those of the group that it stands in: <div class="live-beside">.

"use strict";
(() => {
  const folder = document.currentScript.src.replace(/[^/]*$/, ""); // where this script and its neighbours lie
  const SIDE = 28; // pixels of a picture
  const figures = [...document.querySelectorAll("figure.live")];
  const loads = {}; // name of a script -> a promise of what it brought
  const waiting = {}; // name of a model -> who is told when the worker has it
  let worker, wishes = 0, brought;

  // The scripts call one of these two. (A page that was opened from a folder may read no file in another way.)
  window.liveEngine = window.liveWeights = what => { brought = what; };

  const sorry = why => `This browser cannot run the model here (${why}): what stands above was drawn beforehand.`;

  /** Add a script to the page, once; what it brought. */
  function load(name) {
    loads[name] ||= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${folder}${name}.js`;
      script.onload = () => { resolve(brought); brought = undefined; script.remove(); };
      script.onerror = () => { delete loads[name]; script.remove(); reject(new Error(`${name}.js is not there`)); };
      document.head.append(script);
    });
    return loads[name];
  }

  async function wakeWorker() {
    const { source, kernels } = await load("engine");
    if (worker) return;
    worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    worker.onerror = event => figures.forEach(figure => figure.said(sorry(event.message || "no worker")));
    worker.onmessage = ({ data }) => {
      if (data.loaded) waiting[data.loaded](data.error);
      else figures[data.figure].show(data);
    };
    worker.postMessage({ kernels });
  }

  /** Have the worker know a model, and first the autoencoder that it needs. */
  async function loadModel(name) {
    const model = await load(name);
    if (model.vae) await loadModel(model.vae);
    model.ready ||= new Promise((resolve, reject) => {
      waiting[name] = error => error ? reject(new Error(error)) : resolve();
      worker.postMessage({ ...model });
      delete model.data; // the worker has a copy
    });
    return model.ready;
  }

  const home = figure => figure.closest(".live-beside") || figure;
  const inputsOf = home => [...home.querySelectorAll("input[name], select[name]")];

  /** What a figure draws: it gets the functions `ask` and `show`. */
  function setUp(figure, number) {
    const canvas = figure.querySelector("canvas"), status = figure.querySelector(".live-said");
    const still = home(figure).querySelector(".live-still"), inputs = inputsOf(home(figure));
    const { model, task, classes, classifier } = figure.dataset, count = canvas.width / SIDE;
    const context = canvas.getContext("2d", { willReadFrequently: true }); // so small that no GPU is worth it
    let last = 0; // id of the last wish
    figure.paper = figure.dataset.paper === undefined ? null : document.querySelector(".live-paper"); // see paper.js

    /** What the controls stand at, and what the figure has no control for. */
    const read = () => {
      const asked = { model, task, count, ...JSON.parse(figure.dataset.fixed) };
      for (const { name, value } of inputs) {
        if (!classes && (name === "label" || name === "scale")) continue; // of another model of the group
        if (name === "label" && value === "") asked[name] = null; // all classes in turn
        else asked[name] = name === "sampler" ? value : Number(value);
      }
      return asked;
    };

    figure.ask = () => {
      const asked = read(), every = Array.from({ length: count }, (_, i) => i % classes);
      const labels = classes ? every.map(label => asked.label ?? label) : null;
      figure.asked = asked;
      figure.setAttribute("aria-busy", "true");
      delete figure.dataset.drawn; // until it is finished
      delete figure.dataset.ms;
      worker.postMessage({ ...asked, ...figure.paper?.drawing, labels, classifier, figure: number, id: last = ++wishes });
    };

    const paint = pictures => {
      const image = new ImageData(SIDE * count, SIDE);
      for (let k = 0, i = 0; k < count; k++) for (let r = 0; r < SIDE; r++) for (let q = 0; q < SIDE; q++, i++) {
        const at = 4 * ((r * count + k) * SIDE + q);
        image.data[at] = image.data[at + 1] = image.data[at + 2] = Math.round((pictures[i] + 1) * 127.5);
        image.data[at + 3] = 255;
      }
      context.putImageData(image, 0, 0);
      if (still) still.hidden = true;
      canvas.hidden = false;
    };

    figure.said = words => { status.textContent = words; };

    figure.show = answer => {
      if (answer.id !== last) return; // of a wish that is past
      if (answer.read) return tellRead(answer.read);
      if (answer.pictures) paint(answer.pictures);
      if (answer.error) figure.said(`That went wrong: ${answer.error}`);
      if (answer.ms === undefined && !answer.error) return;
      figure.removeAttribute("aria-busy");
      if (answer.error) return;
      canvas.setAttribute("aria-label", describe(figure.asked));
      const same = task === "sample" || task === "watch"; // Python has one call for it
      const did = task === "classify" ? "Read" : "Drawn";
      figure.said(`${did} here in ${(Math.max(answer.ms, 10) / 1000).toFixed(2)} s${same ? ":" : ""}`);
      if (same) figure.querySelector(".live-call").textContent = call(figure.asked);
      if (answer.maps) figure.dispatchEvent(new CustomEvent("maps", { detail: answer })); // see maps.js
      figure.dataset.ms = Math.max(1, Math.round(answer.ms));
      figure.dataset.drawn = JSON.stringify(figure.asked);
    };

    /** Below each picture what the classifier takes it for; below a single one, its three most likely digits. */
    const tellRead = read => {
      const list = figure.querySelector(".live-read"), most = count === 1 ? 3 : 1;
      list.replaceChildren(...read.map(chances => {
        const item = document.createElement("li"), order = [...chances.keys()].sort((a, b) => chances[b] - chances[a]);
        item.textContent = order.slice(0, most).map(digit => `${digit}: ${Math.round(100 * chances[digit])} %`).join(", ");
        item.classList.toggle("unsure", chances[order[0]] < 0.9);
        return item;
      }));
      figure.dataset.read = JSON.stringify(read);
    };
  }

  /** The controls of one figure or of a group, and the button that wakes all figures that they belong to. */
  function setUpControls(home) {
    const mine = figures.filter(figure => home.contains(figure)), inputs = inputsOf(home);
    const button = home.querySelector(".live-start"), said = words => mine.forEach(figure => figure.said(words));
    const ask = () => mine.forEach(figure => figure.ask());
    const tell = input => {
      const output = input.parentElement.querySelector("output");
      if (output) output.value = Number(input.value).toFixed((input.step.split(".")[1] || "").length);
    };

    button.parentElement.hidden = false;
    button.onclick = async () => {
      const focused = document.activeElement === button;
      button.disabled = true;
      said("Loading the model …");
      try {
        await wakeWorker();
        for (const { dataset: { model, classifier } } of mine) {
          if (classifier) await loadModel(classifier);
          await loadModel(model);
        }
      } catch (error) {
        said(sorry(error.message));
        button.disabled = false;
        return;
      }
      button.hidden = true;
      for (const input of inputs) {
        input.disabled = false;
        input.oninput = () => { tell(input); ask(); };
        tell(input);
      }
      home.classList.add("awake");
      mine.forEach(figure => figure.paper?.addEventListener("drawn", figure.ask));
      if (focused) inputs[0]?.focus(); // else the keyboard's reader would start again at the top
      ask();
    };
  }

  /** What draws the same in Python. */
  function call({ model, task, count, label, scale, until, steps, sampler, eta, seed }) {
    if (task === "watch") {
      const labels = label === null ? `range(${count})` : `[${label}] * ${count}`;
      return `sampling.watch(load('${model}'), ${labels}, ${scale.toFixed(1)}, steps=${steps}, seed=${seed})`;
    }
    const given = [`${count}`];
    if (label !== undefined && label !== null) given.push(`labels=${label}`);
    given.push(`sampler='${sampler}'`, `steps=${steps}`);
    if (eta) given.push(`eta=${eta}`);
    if (scale !== undefined) given.push(`guidance_scale=${scale.toFixed(1)}`);
    given.push(`seed=${seed}`);
    if (!until) return `load('${model}').sample(${given.join(", ")})`;
    given[0] = `range(${count})`;
    return `next(state.x for state in load('${model}').states(${given.join(", ")}) if state.t <= ${until})`;
  }

  /** What a picture shows, in words. */
  function describe({ task, count, label, scale, until, t, steps, sampler, eta, seed }) {
    if (task === "classify") return "The drawing as the classifier sees it";
    if (task === "reconstruct") return "The drawing, encoded and decoded";
    if (task === "invert") return `The drawing's noise, and what comes back from it, ${steps} steps each way, seed ${seed}`;
    const some = { sample: "digits", watch: "predicted digits", sdedit: "digits out of the noised drawing", inpaint: "drawings filled in",
      change: "digits in the style of the drawing" }[task];
    const what = label === undefined || label === null ? `${count} ${some}` : `${count} ${some}, all ${label}`;
    const how = [`${steps} ${steps === 1 ? "step" : "steps"} of ${sampler}`];
    if (t !== undefined) how.unshift(`from time ${t.toFixed(2)}`);
    if (until) how.unshift(`${task === "watch" ? "predicted" : "stopped"} at time ${until.toFixed(2)}`);
    if (scale !== undefined) how.unshift(`guidance scale ${scale.toFixed(1)}`);
    if (eta) how.push(`eta ${eta.toFixed(1)}`);
    return `${what}, ${how.join(", ")}, seed ${seed}`;
  }

  figures.forEach(setUp);
  new Set(figures.map(home)).forEach(setUpControls);
})();
