// What runs beside the page, so that the page never waits. It gets three kinds of messages:
//   {kernels}                      once, first: see `begin` in layers.js
//   {name, recipe, tensors, data, vae}   a model; vae: the name of the one that its latents belong to
//   {figure, id, model, ...}       draw, for this figure; an older wish of the same figure is dropped
// and answers {loaded} (or {loaded, error}), {figure, id, pictures, t} on the way, and {figure, id, pictures, ms} at the
// end, with the maps of attention and their time where they were asked for; then, where it knows a classifier,
// {figure, id, read}: for each picture the probabilities of the ten digits.

const models = {}, newest = {}; // newest: figure -> id of its last wish
const PREVIEW = 120; // milliseconds between pictures on the way

/** Let messages in that wait at the door. (A timer would wait 4 ms each time.) */
function doorOpen() {
  return new Promise(resolve => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { port1.close(); resolve(); };
    port2.postMessage(0);
  });
}

class Stale extends Error {}

async function draw(wish) {
  const begun = performance.now(), model = models[wish.model];
  let shown = begun, cost = 0, x, maps, t;
  const pause = async () => {
    await doorOpen();
    if (newest[wish.figure] !== wish.id) throw new Stale();
  };
  await pause();
  for await (const state of states(model, wish, pause)) {
    ({ x, maps, t } = state);
    const now = performance.now();
    // A picture on the way costs time too, for latents have to be decoded: it may take a fifth of it.
    if (state.prediction && state.t > 0 && wish.until === undefined && now - shown > Math.max(PREVIEW, 4 * cost)) {
      const pictures = toImages(model, state.prediction.x0);
      postMessage({ figure: wish.figure, id: wish.id, pictures, t: state.t });
      shown = performance.now(), cost = shown - now;
    }
  }
  await pause();
  const pictures = toImages(model, x);
  postMessage({ figure: wish.figure, id: wish.id, pictures, maps, t, ms: performance.now() - begun });
  if (!wish.classifier) return;
  await pause();
  postMessage({ figure: wish.figure, id: wish.id, read: classify(models[wish.classifier], pictures) });
}

function know(message) {
  const { name, recipe, vae } = message;
  try {
    models[name] = { recipe, weights: readWeights(message), vae: models[vae] };
    postMessage({ loaded: name });
  } catch (error) { // such as a memory that is too small
    postMessage({ loaded: name, error: String(error) });
  }
}

onmessage = async ({ data: message }) => {
  if (message.kernels) return begin(message.kernels);
  if (message.name) return know(message);
  const { figure, id } = message;
  newest[figure] = id;
  try {
    await draw(message);
  } catch (error) {
    if (!(error instanceof Stale)) postMessage({ figure, id, error: String(error) });
  }
};
