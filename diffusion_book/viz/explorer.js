// One handler for both inputs, on the figure that their events rise to. The sheet is a column of frames, one for each
// scale; a frame holds all digits. The box shows a whole frame or one digit of it. Percentages are of the box.
const digit = this.querySelector('select').value;
const scale = this.querySelector('input').value;
const image = this.querySelector('img');
const columns = +this.dataset.columns;
const rows = +this.dataset.rows;
const one = digit !== '';
const width = one ? 1 : columns;
const height = one ? 1 : rows;
const left = one ? digit % columns : 0;
const top = Math.round(scale / this.dataset.apart) * rows + (one ? Math.floor(digit / columns) : 0);
Object.assign(image.style, {
  width: 100 * columns / width + '%',
  left: -100 * left / width + '%',
  top: -100 * top / height + '%',
});
// As high as all of them, so that the page does not jump: `padding-bottom` is of the figure's width.
image.parentNode.style.width = one ? 100 * rows / columns + '%' : '100%';
image.alt = (one ? 'Digit ' + digit : 'All digits') + ' at guidance scale ' + scale;
this.querySelector('output').textContent = (+scale).toFixed(1);
