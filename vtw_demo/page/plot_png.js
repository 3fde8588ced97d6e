// Saves a plot as a PNG file, on white whatever the page's colours are.
() => {
  const plot = document.querySelector("#NAME .js-plotly-plot");
  if (!plot) return;
  const layout = { ...plot.layout, paper_bgcolor: "#fff", plot_bgcolor: "#fff" };
  const { width, height } = plot.getBoundingClientRect();
  window.Plotly.downloadImage({ data: plot.data, layout }, { format: "png", filename: "NAME", width, height, scale: 2 });
};
