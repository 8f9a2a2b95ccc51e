// The handles of ipywidgets' sliders have no name for a screen reader. The picture gives them the one that stands
// beside them; it waits until the whole control is on the page.
setTimeout(() => this.closest('.widget-vbox')?.querySelectorAll('.noUi-handle').forEach(handle =>
  handle.setAttribute('aria-label', handle.closest('.widget-inline-hbox').querySelector('label').textContent)), 300);
