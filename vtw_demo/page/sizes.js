// Plots grow with the page's type, and where they stand beside what is asked, to the window's foot. After a window has got
// another size they are laid out anew: Plotly leaves a legend where it was.
(() => {
  const SIDES = ["l", "r", "t", "b"];
  const FOOT = 80;
  const isBeside = window.matchMedia("(min-width: 1800px)"); // as sizes.css has it
  const fit = (isResized) => {
    const root = document.documentElement;
    if (root.dataset.view) return; // there the tour fits them
    const factor = parseFloat(getComputedStyle(root).fontSize) / 16;
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      if (!plot._fullLayout?.height || !plot.offsetParent) continue;
      const by = factor / (plot.layout.grown ?? 1);
      if (by === 1 && !isResized) continue;
      const { font, margin } = plot._fullLayout;
      const drawn = plot.layout.drawn ?? plot._fullLayout.height;
      const room = window.innerHeight - (plot.getBoundingClientRect().top + window.scrollY) - FOOT;
      const height = Math.max(drawn * factor, isBeside.matches ? room : 0);
      const margins = Object.fromEntries(SIDES.map((side) => [side, margin[side] * by]));
      const sizes = { drawn, grown: factor, width: plot.clientWidth, height, margin: margins };
      Object.assign(plot.layout, sizes, { font: { ...plot.layout.font, size: font.size * by } });
      // Its width goes on following the window's.
      window.Plotly.redraw(plot).then(() => Object.assign(plot.layout, { autosize: true, width: undefined }));
    }
  };
  let due = 0;
  window.addEventListener("resize", () => {
    clearTimeout(due);
    due = setTimeout(fit, 300, true); // after Plotly itself
  });
  new MutationObserver(() => fit(false)).observe(document.body, { childList: true, subtree: true });
})();
