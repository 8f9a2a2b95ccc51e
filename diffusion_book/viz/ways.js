// The slider's place on every way: its line up to there on each map, and the picture at that point.
const place = +this.querySelector('input').value;
const data = JSON.parse(this.dataset.ways);
const last = data.captions.length - 1;
this.querySelectorAll('[data-way]').forEach(each => each.style.backgroundPositionX = 100 * place / last + '%');
this.querySelectorAll('[data-map]').forEach((panel, map) => {
  panel.querySelectorAll('polyline').forEach((line, way) =>
    line.setAttribute('points', data.maps[map][way].slice(0, place + 1).join(' ')));
  panel.querySelectorAll('[data-way]').forEach((picture, way) => {
    const at = data.maps[map][way][place];
    picture.style.left = at[0] + '%';
    picture.style.top = at[1] + '%';
  });
});
this.querySelector('output').textContent = data.captions[place];
this.querySelector('input').setAttribute('aria-valuetext', data.captions[place]);
