// The tour: five steps through the tabs, each with a plot, its sentence and something to try. On stage, the same steps are
// large. The address says which is open, so that a link opens it.
const root = document.documentElement;
const steps = [...element.querySelectorAll("section")];
const find = (selector) => element.querySelector(selector);
const wide = window.matchMedia("(min-width: 1000px)");
let step = 0; // counted from 1; 0 where there is none

const opener = document.createElement("button");
opener.id = "take-tour";
opener.type = "button";
opener.textContent = "Take the tour";
opener.onclick = () => open(1, "tour");

const numbers = steps.map((section, index) => {
  const button = document.createElement("button");
  button.type = "button";
  button.innerHTML = `<b>${index + 1}</b><i> of ${steps.length}</i> <span>${section.dataset.name}</span>`;
  button.ariaLabel = `Step ${index + 1}: ${section.dataset.name}`;
  button.onclick = () => open(index + 1);
  const item = document.createElement("li");
  item.append(button);
  find("ol").append(item);
  return button;
});

// The plot fills what is left of the window; on stage it is magnified.
const fit = () => {
  const type = parseFloat(getComputedStyle(root).fontSize) / 16;
  const magnified = root.dataset.view === "stage" ? Math.max(window.innerWidth / 1024, type) : type;
  const isFilling = step && wide.matches;
  root.style.setProperty("--magnified", isFilling ? magnified : 1); // of what is drawn from now on
  for (const plot of document.querySelectorAll("#tabs .js-plotly-plot")) {
    const drawn = plot._fullLayout;
    if (!drawn?.height || !plot.offsetParent || !(isFilling || plot.dataset.height)) continue;
    // Without what sizes.js has made of it.
    const grown = plot.layout.grown ?? 1;
    plot.dataset.height ||= drawn.height / grown;
    const more = magnified / grown;
    plot.style.setProperty("--magnified", isFilling ? more : 1);
    const height = isFilling ? plot.parentElement.clientHeight / more : plot.dataset.height * grown;
    if (!isFilling) delete plot.dataset.height;
    if (Math.abs(height - drawn.height) < 2 && Math.abs(plot.clientWidth - drawn.width) < 2) continue;
    window.Plotly.relayout(plot, { height, autosize: true });
  }
};
let isDue = false;
const fitSoon = () => {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    fit();
  });
};

const show = (view) => {
  if (step) root.dataset.view = view;
  else delete root.dataset.view;
  steps.forEach((section, index) => (section.hidden = index !== step - 1));
  numbers.forEach((button, index) => (button.ariaCurrent = index === step - 1 ? "step" : null));
  find(".tour-back").disabled = step === 1;
  find(".tour-next").textContent = step === steps.length ? "Finish" : "Next";
  find(".tour-size").textContent = view === "stage" ? "Tour" : "Stage";
  const url = new URL(window.location.href);
  url.searchParams.delete("stage");
  url.searchParams.delete("tour");
  if (step) url.searchParams.set("tour", step);
  if (step && view === "stage") url.searchParams.set("stage", "");
  window.history.replaceState(window.history.state, "", url);
  fit();
};

const open = (number, view = root.dataset.view) => {
  step = Math.min(Math.max(number, 1), steps.length);
  show(view);
  const section = steps[step - 1];
  const tab = document.querySelector(`#tabs [role="tab"][data-tab-id="${section.dataset.tab}"]`);
  if (tab.getAttribute("aria-selected") !== "true") tab.click();
  window.scrollTo(0, 0);
  section.querySelector("h2").focus({ preventScroll: true });
};

const leave = () => {
  step = 0;
  show();
  opener.focus();
};

const go = (by) => (step + by > steps.length ? leave() : open(step + by));
find(".tour-back").onclick = () => go(-1);
find(".tour-next").onclick = () => go(1);
find(".tour-leave").onclick = leave;
find(".tour-size").onclick = () => open(step, root.dataset.view === "stage" ? "tour" : "stage");

// Presenters' remote controls send the keys that turn pages, or arrows; these are a slider's where one has the focus.
const PAGES = { PageDown: 1, PageUp: -1 };
const ARROWS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
document.addEventListener("keydown", (event) => {
  if (!step || event.defaultPrevented) return;
  if (event.key === "Escape") return leave();
  const isStage = root.dataset.view === "stage";
  const isFree = !event.target.closest("input, textarea, select, [role=listbox]");
  const by = isStage ? PAGES[event.key] || (isFree && ARROWS[event.key]) : 0;
  if (!by) return;
  event.preventDefault();
  if (step + by <= steps.length) go(by);
});
// A slider that has the focus was not let go of by them.
document.addEventListener("keyup", (event) => {
  if (root.dataset.view === "stage" && event.key in PAGES) event.stopImmediatePropagation();
}, true);

const begin = () => {
  const bar = document.querySelector("#tabs > .tab-wrapper");
  if (!bar?.querySelector('[role="tab"]')) return requestAnimationFrame(begin);
  bar.append(opener);
  new MutationObserver(fitSoon).observe(bar.parentElement, { childList: true, subtree: true });
  new ResizeObserver(fitSoon).observe(bar.parentElement);
  const asked = new URLSearchParams(window.location.search);
  const view = asked.has("stage") ? "stage" : asked.has("tour") ? "tour" : null;
  if (view) open(Number(asked.get("tour")) || 1, view);
};
begin();
