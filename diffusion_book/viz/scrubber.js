// The handler finds its parts from the slider itself, so nothing needs an id and any number of scrubbers can share a
// page. Percentages are of the visible box, so it works at any width.
const figure = this.closest('figure');
const frame = +this.value;
const style = figure.querySelector('img').style;
const columns = +figure.dataset.columns;
style.left = -100 * (frame % columns) + '%';
style.top = -100 * Math.floor(frame / columns) + '%';
const words = JSON.parse(figure.dataset.captions)[frame];
figure.querySelector('output').textContent = words;
this.setAttribute('aria-valuetext', words);
