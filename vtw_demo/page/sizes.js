// Plots grow with the page's type, and are drawn anew when that changes.
(() => {
  const grow = () => {
    if (document.documentElement.dataset.view) return; // tour.js fits them
    const factor = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      const by = factor / (plot.layout?.grown ?? 1);
      if (!plot.layout || by === 1) continue;
      const { font, height, margin } = plot.layout;
      const sides = ["l", "r", "t", "b"].map((side) => [`margin.${side}`, margin[side] * by]);
      window.Plotly.relayout(plot, { grown: factor, height: height * by, "font.size": font.size * by, ...Object.fromEntries(sides) });
    }
  };
  window.addEventListener("resize", () => setTimeout(grow, 300)); // Plotly's own answer comes before
  new MutationObserver(grow).observe(document.body, { childList: true, subtree: true });
})();
