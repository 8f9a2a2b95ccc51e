/* What scrolls sideways, a wide table or equation, gets a place in the order of the Tab key: arrow keys can move it then. */
(() => {
  const scrolls = element =>
    element.scrollWidth > element.clientWidth && ["auto", "scroll"].includes(getComputedStyle(element).overflowX);

  function reach() {
    for (const element of document.querySelectorAll("article :is(.math, mjx-container, table, pre, div, figure, a)")) {
      if (scrolls(element)) {
        element.tabIndex = 0;
        element.dataset.reached = "";
      } else if ("reached" in element.dataset) {
        element.removeAttribute("tabindex");
        delete element.dataset.reached;
      }
    }
  }

  addEventListener("load", () => {
    reach();
    window.MathJax?.startup?.promise?.then(reach);
  });
  addEventListener("resize", reach);
})();
