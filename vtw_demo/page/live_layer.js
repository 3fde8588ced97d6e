// What the last question's sweep says of withdrawal at K, while the slider is dragged: no server is asked.
const line = (swept, layer) => {
  const escaped = (text) =>
    String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  if (!swept || !swept.kl) {
    return '<p class="live note">Once a question has been answered, this line says what withdrawal at each K does to it.</p>';
  }
  const index = layer - 1;
  const isLast = index >= swept.kl.length;
  const figure = (value) => (value === 0 ? "0" : value < 0.001 ? value.toExponential(1) : value.toPrecision(2));
  const less = (shares, noun) =>
    shares && !isLast ? ` · <b>${Math.round(100 * (1 - shares[index]))} %</b> ${noun}` : "";
  const bars = (title, tokens) => {
    const looks = tokens.map((token) => token.text.trim());
    const isAlone = (look) => looks.indexOf(look) === looks.lastIndexOf(look);
    const name = ({ text }) =>
      isAlone(text.trim()) ? text.trim() || "␣" : text.replaceAll(" ", "␣").replaceAll("\n", "⏎");
    const rows = tokens
      .map((token) => {
        const share = 100 * token.probability;
        return (
          `<li><span class="bar" style="width:${share.toFixed(1)}%"></span>` +
          `<span class="token">${escaped(name(token))}</span><span>${share < 0.05 ? "under 0.1" : share.toFixed(1)} %</span></li>`
        );
      })
      .join("");
    return `<div><h4>${title}</h4><ol>${rows}</ol></div>`;
  };
  const kl = isLast ? 0 : swept.kl[index];
  const facts = isLast
    ? `At <b>K = ${layer}</b> nothing is withdrawn`
    : `At <b>K = ${layer}</b> KL <b>${figure(kl)}</b>` +
      less(swept.flops_left, "fewer FLOPs") +
      less(swept.cache_left, "less cache") + (swept.flops_left || swept.cache_left ? " (of the prompt)" : "");
  const needed =
    swept.needs === null
      ? `No K is within a divergence of ${swept.threshold}`
      : `This question needs K = ${swept.needs}` +
        (swept.needs === layer ? "" : ` <button type="button" data-layer="${swept.needs}">Set it</button>`);
  const withdrawn = isLast ? swept.full_tokens : swept.withdrawn_tokens[index];
  return (
    `<div class="live" data-layer="${layer}" data-of="${escaped(swept.of)}"><p>${facts}</p><div class="tokens">` +
    bars("Next token, full", swept.full_tokens) +
    bars(`Next token, withdrawn at ${layer}`, withdrawn) +
    `</div><p class="note">For “${escaped(swept.question)}” · ${needed}</p></div>`
  );
};

let layer = props.layer;
// The slider's K, in the plot of every K, whenever that is drawn anew.
const mark = () => {
  const plot = document.querySelector("#choose-k .js-plotly-plot");
  const shapes = plot?._fullLayout ? (plot.layout.shapes ?? []) : null;
  if (!shapes || shapes.some((shape) => shape.name === "slider" && shape.x0 === layer)) return;
  const slider = { name: "slider", type: "line", x0: layer, x1: layer, y0: 0, y1: 1, yref: "paper" };
  const side = layer > props.value?.kl?.length / 2 ? "right" : "left";
  const label = { text: ` K = ${layer} `, textposition: "end", textangle: 0, xanchor: side, yanchor: "top" };
  const look = { line: { width: 2, color: "#D55E00" }, label };
  const others = shapes.filter((shape) => shape.name !== "slider");
  window.Plotly.relayout(plot, { shapes: [...others, { ...slider, ...look }] });
};
const show = () => {
  element.innerHTML = line(props.value, layer);
  mark();
};
new MutationObserver(mark).observe(document.body, { childList: true, subtree: true });
// asking.py tells it what the controls hold.
window.addEventListener("controls", (event) => {
  if (layer === event.detail[3]) return;
  layer = event.detail[3];
  show();
});
watch("value", show);
show();
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("select", { layer: Number(button.dataset.layer) });
});
