// Plots grow with the page's type, and are drawn anew when that changes.
(() => {
  const grow = () => {
    const root = document.documentElement;
    // On stage they are magnified as a whole.
    const factor = root.dataset.view === "stage" ? 1 : parseFloat(getComputedStyle(root).fontSize) / 16;
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      const by = factor / (plot.layout?.grown ?? 1);
      if (!plot.layout || by === 1) continue;
      const { font, height, margin } = plot.layout;
      const sides = Object.entries(margin).map(([side, width]) => [`margin.${side}`, width * by]);
      window.Plotly.relayout(plot, { grown: factor, height: height * by, "font.size": font.size * by, ...Object.fromEntries(sides) });
    }
  };
  window.addEventListener("resize", grow);
  new MutationObserver(grow).observe(document.body, { childList: true, subtree: true });
})();
