// Moves the slider on by one, seven times a second, and stops at its end or where the figure has gone.
const button = this;
const slider = button.closest('figure').querySelector('input');
const stop = () => {
  clearInterval(button.timer);
  button.timer = 0;
  button.textContent = 'Play';
};
if (button.timer) {
  stop();
} else {
  button.textContent = 'Stop';
  if (+slider.value >= +slider.max) slider.value = -1;
  button.timer = setInterval(() => {
    if (+slider.value >= +slider.max || !button.isConnected) return stop();
    slider.value = +slider.value + 1;
    slider.dispatchEvent(new Event('input', {bubbles: true}));
  }, 150);
}
